"""Faults of ours, as they may be told."""


def describe(error: BaseException) -> str:
    """The kind and the place of a fault. Its text is left out, for it may hold what a client or a file said."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"internal error: {type(error).__name__}{place}"

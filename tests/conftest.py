"""What holds for all tests, however they were started."""

import os
import signal

# A test that is a gRPC server has children, too, and they do nothing but execute a program: what gRPC does to children
# keeps some of them from that.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

# A shell that starts something in the background has it ignore these, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)

"""The section of the key store: which keys each kind has, which it needs, which exclude each other.

Each store describes its own section as a Shape. What is read ends as a StoreSection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from keswick.config import duration
from keswick.config.document import Entry, Section, Value, nearest, shortened
from keswick.keystore import table
from keswick.keystore.section import Shape, StoreSection

KINDS = table.CONFIGURABLE
_GONE = {
    "kes": "a KES server as the key store of another was removed in 2023",
}


def _shape(kind: str) -> Shape:
    return Shape(required=("endpoint",)) if kind in _GONE else table.module(kind).SHAPE


def read(section: Section) -> StoreSection:
    """The one store of a `keystore` section. Raises ConfigError."""
    found: dict[str, Section] = {}
    vendors = {kind.partition(".")[0] for kind in KINDS}
    for key in section:
        if key in _GONE:
            raise section.error_at(key, f"the key store {key!r} no longer exists: {_GONE[key]}; use one of {_listed()}")
        if key not in vendors:
            hint = nearest(key, vendors) or f"; there are {_listed()}"
            raise section.error_at(key, f"unknown key store {shortened(key)!r}{hint}")
        if key not in section:
            continue
        if key in KINDS:
            found[key] = section.section(key)
            continue
        (product,) = (kind.partition(".")[2] for kind in KINDS if kind.startswith(key + "."))
        vendor = section.section(key).only(product)
        if product not in vendor:
            raise section.error_at(key, f"{vendor.key!r} holds no key store; write the settings below '{product}:'")
        found[f"{key}.{product}"] = vendor.section(product)
    if not found:
        raise section.error(
            f"no key store is configured; write for example '{section.key}: {{fs: {{path: /var/lib/kes/keys}}}}', or "
            "run 'kes server --dev' to try things out with keys that are kept in memory only"
        )
    if len(found) > 1:
        first, second, *_ = found
        raise found[second].error(f"more than one key store is configured: {first!r} and {second!r}; keep one of them")
    ((kind, store),) = found.items()
    module = table.module(kind)
    meanings = {  # those that are no sentence without the name of the setting are left out
        setting.name: setting.meaning.partition(";")[0]
        for setting in module.SETTINGS
        if not setting.meaning.startswith("of ")
    }
    return StoreSection(kind, _settings(store, module.SHAPE, meanings))


def is_meaningless(key: Sequence[str]) -> bool:
    """Whether a key, named from the top of the document on, is one of a store that no longer does anything."""
    for kind in KINDS:
        store = ("keystore", *kind.split("."))
        if tuple(key[: len(store)]) == store:
            shape = _shape(kind)
            for section in key[len(store) : -1]:
                shape = shape.sections.get(section, Shape())
            return key[-1] in shape.meaningless
    return False


def without_empty_stores(document: Section) -> Section:
    """A document of an older form, in the shape of today, without the stores that did not count there."""
    if "keystore" not in document:
        return document
    entry, section = document.entries()["keystore"], document.section("keystore")
    return document.with_entries({**document.entries(), "keystore": replace(entry, node=_without_empty(section))})


def _without_empty(section: Section) -> Section:
    """The `keystore` section of such a document.

    A store counts when its endpoint or path is set, a way to log in when something is set that it requires: the samples
    of that time listed every one. Where no store counts, the first one stays of which something else is set.
    """
    shapes = {kind: _shape(kind) for kind in (*KINDS, *_GONE) if kind.partition(".")[0] in section}
    stores = [(kind, _store(section, kind), shape) for kind, shape in shapes.items()]
    touched = [kind for kind, store, shape in stores if _is_touched(store, shape)]
    counting = [kind for kind, store, shape in stores if not store.is_blank(shape.required[0])]
    if len(counting) > 1:  # a variable that is not set may be what makes them too many
        for kind, store, shape in stores:
            if kind in counting and kind not in _GONE:
                store.value(shape.required[0])
    if counting:
        for kind, store, shape in stores:
            if kind in touched and kind not in counting:
                missing = f"'{store.key}.{shape.required[0]}'"
                section.source.warn(store.line, f"{store.key!r} does not count, because {missing} is not set")
    kept: dict[str, Entry] = {}
    for kind, store, shape in stores:
        if kind in (counting or touched[:1]):
            vendor, _, product = kind.partition(".")
            entry = section.entries()[vendor]
            node = _without_empty_parts(store, shape)
            if product:
                outer = section.section(vendor)
                node = outer.with_entries({product: replace(outer.entries()[product], node=node)})
            kept[vendor] = replace(entry, node=node)
    return section.with_entries(kept)


def _store(section: Section, kind: str) -> Section:
    vendor, _, product = kind.partition(".")
    outer = section.section(vendor)
    return outer.section(product) if product else outer


def _is_touched(section: Section, shape: Shape) -> bool:
    """Whether anything is set but what has a default, or no meaning any more."""
    return any(
        _is_touched(section.section(key), shape.sections.get(key, Shape()))
        if section.is_section(key)
        else key not in shape.defaults and key not in shape.meaningless and not section.is_blank(key)
        for key in section
    )


def _without_empty_parts(section: Section, shape: Shape) -> Section:
    empty = {
        key
        for key, inner in shape.sections.items()
        if key not in shape.required and inner.required and all(map(section.section(key).is_blank, inner.required))
    }
    return section.with_entries({key: entry for key, entry in section.entries().items() if key not in empty})


def _listed() -> str:
    return ", ".join(KINDS)


def _settings(section: Section, shape: Shape, meanings: Mapping[str, str], around: str = "") -> dict[str, str]:
    """`meanings`: of the settings of the whole store; `around`: where in it this section stands, such as `tls.`."""
    section.only(*shape.keys(), meaningless=shape.meaningless)
    settings = dict(shape.defaults)
    for key in shape.required:
        if key not in shape.sections:
            settings[key] = section.required(key, meanings.get(around + key, "")).text
        elif key not in section:
            raise section.error(f"'{section.key}.{key}' is missing")
    for key in (*shape.optional, *shape.defaults):
        value = section.value(key)
        if value is not None and value.text:
            settings[key] = _setting(key, value, shape)
    for key in shape.lists:
        if entries := [value.text for value in section.values(key)]:
            settings[key] = " ".join(entries)
    _check_together(section, shape, settings)
    _check_methods(section, shape)
    for key, inner in shape.sections.items():
        if key in section:
            found = _settings(section.section(key), inner, meanings, f"{around}{key}.")
            settings |= {f"{key}.{name}": text for name, text in found.items()}
        elif not inner.required:
            settings |= {f"{key}.{name}": text for name, text in inner.defaults.items()}
    return settings


def _setting(key: str, value: Value, shape: Shape) -> str:
    if key in shape.choices and value.text not in shape.choices[key]:
        raise value.error(f"{value.key!r} must be {' or '.join(map(repr, shape.choices[key]))}, not {value.shown}")
    if key not in shape.durations:
        return value.text
    try:
        seconds = duration.parse(value.text)
    except ValueError as failure:
        raise value.error(f"{value.key!r}: {failure}") from None
    if seconds <= 0:
        raise value.error(f"{value.key!r} must be longer than nothing")
    return str(seconds)


def _check_together(section: Section, shape: Shape, settings: Mapping[str, str]) -> None:
    given = [key for key in shape.together if key in settings]
    missing = [key for key in shape.together if key not in settings]
    if given and missing:
        raise section.error(
            f"'{section.key}.{missing[0]}' is missing: it goes together with '{section.key}.{given[0]}'"
        )


def _check_methods(section: Section, shape: Shape) -> None:
    ways = [f"'{section.key}.{key}'" for key in shape.methods]
    given = [f"'{section.key}.{key}'" for key in shape.methods if key in section]
    if len(given) > 1:
        raise section.error(f"more than one {shape.purpose} is configured: {' and '.join(given)}; keep one of them")
    if shape.must_log_in and not given:
        raise section.error(f"no {shape.purpose} is configured; add {' or '.join(ways)}")

"""A file of an older form, written in the present one, and what changes in meaning by that."""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter

from keswick.config import document, duration, forms, present, stores
from keswick.config.document import Source, UnsetVariable, referenced, shortened
from keswick.config.model import PRESENT, Cache, ConfigError
from keswick.config.readings import reads_alike
from keswick.config.syntax import parse
from keswick.config.translation import Form
from keswick.config.writer import Comments, Item, draft, render
from keswick.identity import APIKey
from keswick.names import is_name
from keswick.policy import is_prefix

_RELEASES = {"2021": "v0.13", "2022": "v0.17", "2023": "2023-04-18"}
"""The release whose dialect a form speaks."""
_LEFT_TO_FLAGS = {("admin", "identity"): "--root", ("tls", "key"): "--key", ("tls", "cert"): "--cert"}
_LONGEST_NAME = 76
"""Of a policy that has to be renamed, so that a number fits behind it."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """`text`: the new file. The others are sentences. `changed`: what means something else from now on; `kept`: what
    means the same because it is written down now; `left`: what there is to do before the file can be used."""

    text: str
    changed: Sequence[str]
    kept: Sequence[str]
    left: Sequence[str]


def migrate(
    path: str | os.PathLike[str], *, apis: Mapping[str, bool], keep_dialect: bool = False, release: str | None = None
) -> Migrated:
    """Write the file `path`, of an older form, in the present one. Raises ConfigError if it is not such a file.

    `apis`: as for `load`. `keep_dialect`: the server is to answer in the words of the older releases, as it would with
    the old file. `release`: `2022` or `2023` for a file that has the present form, and was written for a release of
    that time, which understood it otherwise. References to the environment stay references; when a variable is not
    set, values go unchecked.
    """
    source, text = document.read(path)
    top = parse(source, text)
    form = _with_dialect(forms.recognise(top), top, release)
    translated = form.translate(top)
    unchecked = []
    try:
        present.read(translated, apis, form.name, form.dialect)
    except UnsetVariable as failure:
        unchecked.append(f"set the variables and check the new file with 'kes server --check': {failure}")
    comments = Comments.of_toml(text) if source.is_toml else Comments.of_yaml(text)
    work = _Work(form, draft(translated, comments))
    work.write_what_is_needed()
    work.tell_defaults()
    if keep_dialect:
        work.keep_dialect()
    else:
        work.write_what_was_implied()
        work.give_up_dialect()
        work.rewrite_policies([path for path in apis if path.endswith("/")])
    new = render(_spaced(work.top), comments.rest())
    if lines := comments.remaining():
        work.changed.append(f"comments that found no place in the new file stand in {_listed(lines)}")
    if not unchecked and not work.left:
        work.left += _refusal(new, apis)
    return Migrated(new, [*source.warnings, *work.changed], work.kept, [*unchecked, *work.left])


def _with_dialect(form: Form, top: document.Section, release: str | None) -> Form:
    """The form, and what the releases that read it spoke. Raises ConfigError when that is not known."""
    if form.name != PRESENT:
        if release is not None:
            raise top.source.error(None, "this file has the form of its time, so that '--release' is not needed")
        return form
    if release is None:
        raise top.source.error(
            None,
            "this file is in the present form already. There is nothing to migrate, unless it was written for a "
            "release before October 2023: name that with '--release 2022' (v0.17.2 to v0.22) or '--release 2023'",
        )
    if not top.is_blank("compatibility"):
        raise top.source.error(None, "this file says what it was written for already, with 'compatibility'")
    return replace(form, dialect=release)


def _refusal(text: str, apis: Mapping[str, bool]) -> list[str]:
    """Why the new file cannot be used, although the old one could: because of a value from the environment."""
    try:
        present.read(document.parse(Source("the new file"), text), apis)
    except ConfigError as failure:
        return [str(failure)]
    return []


class _Work:
    """A new file in the making."""

    def __init__(self, form: Form, top: Item) -> None:
        self.form = form
        self.top = top
        self.changed: list[str] = []
        self.kept: list[str] = []
        self.left: list[str] = []

    def write_what_is_needed(self) -> None:
        """What the present form needs in any dialect, and without what it has no use for."""
        for (section, key), flag in _LEFT_TO_FLAGS.items():
            item = self.top.section(section).section(key)
            if item.content in ({}, ""):
                item.content, item.behind = "", f"# or go on with '{flag}'"
                self.left.append(
                    f"write '{section}.{key}', or go on with the flag '{flag}', to which the old file left it"
                )
        _drop_meaningless(self.top.section("keystore"), ("keystore",))
        if (expiry := self.top.at("cache", "expiry")) is not None:
            for item in expiry.keys.values():
                if present.ZERO.fullmatch(str(item.content)):
                    item.content = "0s"

    def tell_defaults(self) -> None:
        """What is another than then, whatever the dialect."""
        release = _RELEASES[self.form.dialect]
        if self.form.name in ("2020", "2021") and self.top.at("address") is None:
            self.changed.append(
                "'address' is not set: the server listens on every address of the machine; v0.13 listened on "
                "127.0.0.1:7373 only"
            )
        if self.form.dialect == "2021":
            default = Cache()
            self.changed += [
                f"'cache.expiry.{key}' is not set: keys leave the cache after {duration.format(seconds)}; in {release} "
                "they stayed until a restart"
                for key, seconds in (("any", default.any), ("unused", default.unused))
                if self.top.at("cache", "expiry", key) is None
            ]
        if self.form.dialect != "2023":
            self.changed.append(
                "counters of requests have the label 'code'; add them up, as in 'sum(kes_http_request_success)'"
            )

    def keep_dialect(self) -> None:
        comment = f"# Answers in the words of {_RELEASES[self.form.dialect]}, and the defaults of that time."
        self.top.content = {"compatibility": Item(self.form.dialect, [comment]), **self.top.keys}

    def write_what_was_implied(self) -> None:
        if self.top.at("tls", "auth") is None:
            self.top.section("tls").keys["auth"] = Item("on", behind="# the default is off since October 2023")
            self.kept.append(
                "client certificates are verified: 'tls.auth: on' is written, because the default is off now"
            )
        if self.top.at("runtime_policies") is None:
            self.top.keys["runtime_policies"] = Item("on", ["# Policies may be written through the API."])
            self.kept.append(
                "policies and assignments may be written through the API: 'runtime_policies: on' is written, because "
                "the default is off now; remove it if nobody does that"
            )
        if self.top.at("log", "audit") is None:
            self.top.section("log").keys["audit"] = Item("off")
            self.kept.append(
                "requests are not recorded: 'log.audit: off' is written, because the newest original records them "
                "where nothing is said"
            )

    def give_up_dialect(self) -> None:
        release = _RELEASES[self.form.dialect]
        self.changed += [
            f"the API answers as in 2025 and no longer as in {release}: statuses, messages, lists; with "
            "'--keep-dialect' it would go on so",
            "times in the audit stream at '/v1/log/audit' are milliseconds, not nanoseconds",
            "to delete a key that is not there is an error, 404; it was a success",
        ]

    def rewrite_policies(self, prefixes: Collection[str]) -> None:
        """Names, identities and rules as the present form has them. `prefixes`: the routes that end in a slash."""
        policies = self.top.at("policy") or Item({})
        renamed: dict[str, Item] = {}
        for name, policy in policies.keys.items():
            new = name if is_name(name) else _new_name(name, {*policies.keys, *renamed})
            if new != name:
                self.changed.append(f"the policy {name!r} is called {new!r} now, because names are stricter")
            renamed[new] = policy
            policy.replace_entries("allow", partial(self._rewritten, policy=new, prefixes=prefixes))
            policy.replace_entries("identities", partial(self._possible, policy=new))
        policies.content = renamed
        if (proxy := self.top.at("tls", "proxy")) is not None:
            proxy.replace_entries("identities", partial(filter, attrgetter("content")))

    def _rewritten(self, rules: Iterable[Item], policy: str, prefixes: Collection[str]) -> Iterator[Item]:
        """A `*` at the end of an allow rule crosses `/` now; behind a backslash the rule is a glob, as it was."""
        for rule in rules:
            text = str(rule.content)
            if text == "*":
                self.changed.append(
                    f"the rule '*' of the policy {policy!r} is left out: it matched nothing, and would match everything"
                )
                continue
            if is_prefix(text) and text.startswith("/") and not reads_alike(text, prefixes):
                rule.content = "\\" + text
                rule.behind = rule.behind or "# because of the backslash, '*' stops at the next '/', as until 2023"
                self.kept.append(
                    f"the rule {text!r} of the policy {policy!r} is written as '{rule.content}', because in {text!r} "
                    "the '*' would cross '/' now"
                )
            yield rule

    def _possible(self, identities: Iterable[Item], policy: str) -> Iterator[Item]:
        for identity in identities:
            text = str(identity.content)
            if is_name(text) or referenced(text) is not None:
                yield identity
            elif text:
                shown = "an API key" if text.startswith(APIKey.PREFIX) else repr(shortened(text))
                self.changed.append(f"{shown} in the policy {policy!r} is left out: it is nobody's identity")


def _drop_meaningless(section: Item, path: tuple[str, ...]) -> None:
    for key, item in list(section.keys.items()):
        if stores.is_meaningless((*path, key)):
            del section.keys[key]
        elif isinstance(item.content, dict):
            _drop_meaningless(item, (*path, key))


def _new_name(name: str, taken: Collection[str]) -> str:
    base = re.sub("[^0-9A-Za-z_]+", "-", name)[:_LONGEST_NAME].strip("-")
    base = base if is_name(base) else "policy"
    names = [base, *(f"{base}-{number}" for number in range(2, len(taken) + 2))]
    return next(new for new in names if new not in taken)


def _listed(lines: Sequence[int]) -> str:
    *most, last = map(str, lines)
    return f"lines {', '.join(most)} and {last}" if most else f"line {last}"


def _spaced(top: Item) -> Item:
    """Empty lines between all sections where there are some."""
    if any("" in item.above for item in top.keys.values()):
        for item in list(top.keys.values())[1:]:
            if item.above[:1] != [""]:
                item.above.insert(0, "")
    return top

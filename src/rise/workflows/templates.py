"""Texts with placeholders, as the stages of a workflow hold them: `Hi {{ user.name | default("you") }}`.

Whoever may edit a workflow writes them, so they are little programs of somebody else's: Jinja's sandbox, in which
nothing can be called. What a template can do is a list here (`_GRAMMAR`, `_FILTERS`, `_TESTS`), and what it does is
counted: each turn of a loop and every character that is joined, changed, compared or put out is paid for from one
small sum, so that rendering ends within a fraction of a second, in little memory. That is why it needs no thread.

Jinja's own sandbox is about reaching things, not about how much: it limits `range` alone. `'a' * 10**9`,
`'%9999999s'`, `.ljust`, `| center`, `| indent`, recursive macros and a text that is joined to itself thirty times fill
any memory. Here they are no part of the grammar, or are counted.

Values are JSON. Put out, an object or a list is JSON too, `null` is nothing; `.name` looks for a name in an object,
never for an attribute of Python's. Of a line that holds nothing but a `{% … %}` nothing is left.

Refuses: names that nothing will have a value for, when it is read, not when somebody waits for the answer; a name
that has no value after all, when it is rendered, unless the template says what is meant then (`| default`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

from jinja2 import StrictUndefined, TemplateError, Undefined, nodes, pass_context
from jinja2 import Template as Compiled
from jinja2.meta import find_undeclared_variables
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from markupsafe import escape

from rise.envelope import encode_json, fits_int64
from rise.errors import PayloadInvalid, StageRefused

TEMPLATE_CHARS_MAX: Final = 32_768
OUTPUT_CHARS_MAX: Final = 262_144
WORK_MAX: Final = 100_000
"""A part of a template that is evaluated costs one, and so do `CHARS_PER_WORK` characters that are touched."""
CHARS_PER_WORK: Final = 64
NODES_MAX: Final = 2000
"""Parts of one template. Reading it is quick as well."""
LOOPS_NESTED_MAX: Final = 4
DEPTH_MAX: Final = 60
COMPILED_KEPT: Final = 512

_GRAMMAR: Final = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign,
    nodes.Name, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair,
    nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Filter, nodes.Test, nodes.Keyword,
    nodes.CondExpr, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos,
    nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat,
)  # fmt: skip
SECRETS: Final = "secrets"
"""`{{ secrets.NAME }}` stands for one, where its field may have any; nothing else can be done with it."""
_OPERATORS: Final = frozenset({"+", "-", "*", "/", "//", "%"})
_LOOP_NAMES: Final = frozenset({"index", "index0", "revindex", "revindex0", "first", "last", "length", "depth"})
_PURSE: Final = "the work that is left"
"""Where the context holds it. No name in a template can be spelled like that."""


class Template:
    """One that was read, and can be rendered as often as wanted."""

    def __init__(self, source: str) -> None:
        """Raises `PayloadInvalid` where it is none, or asks for what is not allowed."""
        if len(source) > TEMPLATE_CHARS_MAX:
            raise PayloadInvalid(f"the template has more than {TEMPLATE_CHARS_MAX} characters")
        tree = _parse(source)
        self.parts = _refuse_beyond_grammar(tree)
        """How many it has: so much work is it to read."""
        self.names = frozenset(find_undeclared_variables(tree))
        """Which it needs a value for."""
        self.stages = frozenset(_stages_named(tree))
        """Whose results it names."""
        self.secrets = frozenset(_secrets_named(tree))
        self.is_one_value = _is_one_value(tree)
        """Whether it is nothing but one `{{ … }}`, so that it stands for the value itself, whatever that is."""
        _count_the_work(tree)
        self._compiled = _compile(tree)

    def text(self, values: Mapping[str, Any], *, spelled: Callable[[str], str] = str) -> str:
        """Rendered. `spelled`: how what is put in is written, where the text around it has a syntax of its own.

        Raises `StageRefused` for a name without a value, and for more work or text than is allowed.
        """
        return self._render(values, _Purse(spelled))

    def value(self, values: Mapping[str, Any]) -> Any:
        """What its one `{{ … }}` stands for, as it is; of any other template the text. Raises as `text` does."""
        purse = _Purse(str)
        text = self._render(values, purse)
        return purse.last if self.is_one_value else text

    def _render(self, values: Mapping[str, Any], purse: _Purse) -> str:
        parts = []
        try:
            for part in self._compiled.generate({**values, _PURSE: purse}):
                purse.put_out(part)
                parts.append(part)
        except (
            TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            # What Jinja and Python say of the values of a template: of their kinds and names, not of what they hold.
            raise StageRefused(f"the template cannot be rendered: {_shortened(str(error))}") from error
        return "".join(parts)


@lru_cache(maxsize=COMPILED_KEPT)
def template(source: str) -> Template:
    """Read it, or take it from the last ones read. Raises `PayloadInvalid` as `Template` does."""
    return Template(source)


def placeholders(source: str) -> set[str]:
    """The names that a template needs values for. Raises `PayloadInvalid` where it is none."""
    return set(template(source).names)


def stages_named(source: str) -> set[str]:
    """The stages whose results a template names. Raises `PayloadInvalid` where it is none."""
    return set(template(source).stages)


def check_template(source: str, field: str, *, known: Collection[str]) -> Template:
    """Read it for a field of a request. Raises `PayloadInvalid` that names the field, and what is wrong there."""
    try:
        read = template(source)
    except PayloadInvalid as error:
        raise PayloadInvalid(f"{field}: {error.public_message}", field=field) from error
    for name in sorted(read.names - set(known)):
        raise PayloadInvalid(f"{field} names {_shortened(name)}; there are {', '.join(known)}", field=field)
    return read


# --- reading ----------------------------------------------------------------------------------------------


def _parse(source: str) -> nodes.Template:
    try:
        return _JINJA.parse(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        raise PayloadInvalid(f"it is no template: {_shortened(str(error))} (line {line})") from error
    except (ValueError, RecursionError) as error:
        raise PayloadInvalid("it is no template: nested too deep, or a number that is too long") from error


def _refuse_beyond_grammar(tree: nodes.Template) -> int:
    """How many parts it has."""
    waiting: list[tuple[nodes.Node, int, int]] = [(tree, 1, 0)]
    left = NODES_MAX
    while waiting:
        node, depth, loops = waiting.pop()
        _refuse_unknown(node)
        left -= 1
        if left < 0:
            raise PayloadInvalid(f"the template has more than {NODES_MAX} parts")
        if isinstance(node, nodes.For):
            loops += 1
        if depth > DEPTH_MAX or loops > LOOPS_NESTED_MAX:
            raise PayloadInvalid(f"line {node.lineno}: it is nested too deep")
        waiting += [(child, depth + 1, loops) for child in node.iter_child_nodes()]
    return NODES_MAX - left


def _refuse_unknown(node: nodes.Node) -> None:
    wrong = None
    if isinstance(node, nodes.Call):
        wrong = "nothing can be called in a template"
    elif not isinstance(node, _GRAMMAR):
        wrong = f"a template has no {type(node).__name__.lower()}"
    elif isinstance(node, nodes.For) and (node.recursive or node.test is not None):
        wrong = "a loop has neither `recursive` nor `if`: put {% if %} into it"
    elif isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        wrong = f"there is no filter {_shortened(node.name)}; there are {', '.join(_FILTERS)}"
    elif isinstance(node, nodes.Test) and node.name not in _TESTS:
        wrong = f"there is no test {_shortened(node.name)}; there are {', '.join(_TESTS)}"
    elif isinstance(node, nodes.Filter | nodes.Test) and (node.dyn_args or node.dyn_kwargs):
        wrong = "arguments are written out, not unpacked"
    elif isinstance(node, nodes.Const) and type(node.value) is int and not fits_int64(node.value):
        wrong = "a number is too long"
    elif isinstance(node, nodes.Const) and type(node.value) is float and not math.isfinite(node.value):
        wrong = "a number is too large"
    if wrong is not None:
        raise PayloadInvalid(f"line {node.lineno or 1}: {wrong}")


def _stages_named(tree: nodes.Template) -> set[str]:
    """By `stages.name` and by `stages["name"]`."""
    named = {node.attr for node in tree.find_all(nodes.Getattr) if _is_stages(node.node)}
    for node in tree.find_all(nodes.Getitem):
        if _is_stages(node.node) and isinstance(node.arg, nodes.Const):
            named.add(str(node.arg.value))
    return named


def _secrets_named(tree: nodes.Template) -> list[str]:
    """Each is put out as it is: what is compared, cut up or looked for by it would show in results and errors."""
    put_out = [part for output in tree.find_all(nodes.Output) for part in output.nodes]
    named = [part.attr for part in put_out if isinstance(part, nodes.Getattr) and _is_secrets(part.node)]
    if len(named) != sum(1 for node in tree.find_all(nodes.Name) if _is_secrets(node)):
        raise PayloadInvalid(f"a secret stands by itself: {{{{ {SECRETS}.NAME }}}}")
    return named


def _is_secrets(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == SECRETS


def _is_stages(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "stages"


def _is_one_value(tree: nodes.Template) -> bool:
    if len(tree.body) != 1 or not isinstance(output := tree.body[0], nodes.Output):
        return False
    return len(output.nodes) == 1 and not isinstance(output.nodes[0], nodes.TemplateData)


def _count_the_work(tree: nodes.Template) -> None:
    """Write into the tree what costs something that no filter or operator sees."""
    for loop in list(tree.find_all(nodes.For)):
        size = sum(1 for part in loop.body for _ in (part, *part.find_all(nodes.Node)))
        loop.body.insert(0, nodes.Output([_filtered(nodes.Const(""), "a turn", nodes.Const(size + 1))]))
    for compared in list(tree.find_all(nodes.Compare)):
        compared.expr = _filtered(compared.expr, "weighed")
        for operand in compared.ops:
            operand.expr = _filtered(operand.expr, "weighed")
    for part in list(tree.find_all(nodes.Getitem)):
        if isinstance(part.arg, nodes.Slice):
            part.node = _filtered(part.node, "copied")
    _replace_joins(tree)


def _replace_joins(node: nodes.Node) -> None:
    """`a ~ b` goes past every hook of the sandbox: as a filter on a list it is counted."""
    for name, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, name, [_joined(one) for one in value])
        else:
            setattr(node, name, _joined(value))
    for child in node.iter_child_nodes():
        _replace_joins(child)


def _joined(value: Any) -> Any:
    return _filtered(nodes.List(value.nodes), "joined") if isinstance(value, nodes.Concat) else value


def _filtered(node: nodes.Expr, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None)


def _compile(tree: nodes.Template) -> Compiled:
    tree.set_environment(_JINJA)
    for node in tree.find_all(nodes.Node):
        node.lineno = node.lineno or 1
    try:
        code = _JINJA.compile(tree)
    except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:
        raise PayloadInvalid(f"it is no template: {_shortened(str(error))}") from error
    return Compiled.from_code(_JINJA, code, {})


# --- rendering --------------------------------------------------------------------------------------------


class _Purse:
    """What one rendering may still spend, and how it spells what it puts in."""

    def __init__(self, spelled: Callable[[str], str]) -> None:
        self.spelled = spelled
        self.last: Any = None
        """What was put in last, as it was."""
        self._work = WORK_MAX
        self._chars = OUTPUT_CHARS_MAX

    def pay(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise StageRefused("the template does more than it may: fewer turns of its loops, or shorter values")

    def touch(self, chars: int) -> None:
        self.pay(1 + chars // CHARS_PER_WORK)

    def weigh(self, value: Any) -> None:
        """Pay for looking at all of it."""
        waiting = [value]
        while waiting:
            part = waiting.pop()
            if isinstance(part, dict):
                waiting += (*part, *part.values())
            elif isinstance(part, list | tuple):
                waiting += part
            self.count(part)

    def count(self, value: Any) -> None:
        """Pay for looking at its entries or characters, not into them."""
        self.touch(len(value) if isinstance(value, str | dict | list | tuple) else 0)

    def put_out(self, text: str) -> None:
        self._chars -= len(text)
        if self._chars < 0:
            raise StageRefused(f"the template gives more than {OUTPUT_CHARS_MAX} characters")


def _purse(context: Context) -> _Purse:
    purse = context[_PURSE]
    assert isinstance(purse, _Purse)
    return purse


@pass_context
def _put_in(context: Context, value: Any) -> str:
    """What stands for a value in the text around it."""
    if isinstance(value, Undefined):
        return str(value)  # raises, and says the name
    purse = _purse(context)
    purse.last = value
    return purse.spelled(_said(purse, value))


def _said(purse: _Purse, value: Any) -> str:
    purse.weigh(value)
    if isinstance(value, str):
        return value
    return "" if value is None else encode_json(value).decode()


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, with nothing in it but values."""

    intercepted_binops = _OPERATORS

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Numbers are calculated with; texts and lists can be put one after the other, nothing else."""
        purse = _purse(context)
        for kind in (str, list):
            if operator == "+" and isinstance(left, kind) and isinstance(right, kind):
                purse.touch(len(left) + len(right))
                return left + right  # type: ignore[operator]
        if not (_is_number(left) and _is_number(right)):
            raise StageRefused(f"the template cannot be rendered: `{operator}` is for numbers")
        return _fitting(self.binop_table[operator](left, right))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What an object has under that name. Python's own attributes and methods are none of it."""
        if isinstance(obj, LoopContext) and attribute in _LOOP_NAMES:
            return getattr(obj, attribute)
        if isinstance(obj, Undefined):
            return getattr(obj, attribute)  # raises, and says which name has no value
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return self.undefined(f"nothing there is called {_shortened(attribute)}", name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, str):
            return self.getattr(obj, argument)
        if isinstance(obj, Undefined):
            return obj[argument]
        try:
            return obj[argument]
        except (TypeError, LookupError):
            # A list is not put into words: nobody has paid for that.
            place = f"the place {argument}" if _is_number(argument) else "that place"
            return self.undefined(f"nothing there has {place}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fitting(number: Any) -> Any:
    """No number grows beyond what every store can hold; so none takes long to calculate with."""
    if isinstance(number, float) and not math.isfinite(number):
        raise StageRefused("the template cannot be rendered: a number grows beyond all that can be written")
    if isinstance(number, int) and not fits_int64(number):
        raise StageRefused("the template cannot be rendered: a number grows beyond 64 bits")
    return number


# --- what there is in a template --------------------------------------------------------------------------


def _title(value: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in value.split(" "))


def _shorten(value: str, length: int = 255, end: str = "…") -> str:
    return value if len(value) <= length else value[: max(0, length - len(end))] + end


def _join(value: Any, by: str = "", attribute: str | None = None) -> list[Any]:
    """The parts, `by` in between."""
    parts: list[Any] = []
    for one in value:
        parts += (by, one[attribute] if attribute is not None else one)
    return parts[1:]


def _sort(value: Any, reverse: bool = False, attribute: str | None = None) -> list[Any]:
    return sorted(value, key=lambda one: one if attribute is None else one[attribute], reverse=reverse)


def _int(value: Any, default: int = 0) -> Any:
    try:
        return _fitting(
            int(float(value)) if isinstance(value, str) and not value.strip("+- ").isdigit() else int(value)
        )
    except (TypeError, ValueError, OverflowError):
        return default


def _float(value: Any, default: float = 0.0) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return default


def _round(value: Any, digits: int = 0) -> Any:
    return round(value, min(digits, 12)) if digits > 0 else round(value)


def _items(value: Any) -> list[list[Any]]:
    if not isinstance(value, dict):
        raise StageRefused("the template cannot be rendered: `items` is for objects")
    return [list(pair) for pair in value.items()]


_ON_TEXTS: Final[dict[str, Callable[..., Any]]] = {
    "upper": str.upper,
    "lower": str.lower,
    "capitalize": str.capitalize,
    "title": _title,
    "truncate": _shorten,
    "urlencode": lambda value: quote(value, safe=""),
    "escape": lambda value: str(escape(value)),
    "e": lambda value: str(escape(value)),
    "string": str,
}
_ON_ENTRIES: Final[dict[str, Callable[..., Any]]] = {
    "length": len,
    "count": len,
    "first": lambda value: next(iter(value), None),
    "last": lambda value: next(reversed(value), None),
    "reverse": lambda value: value[::-1] if isinstance(value, str) else list(value)[::-1],
    "list": list,
    "items": _items,
}
_ON_VALUES: Final[dict[str, Callable[..., Any]]] = {
    "tojson": lambda value: encode_json(value).decode(),
    "sort": _sort,
    "int": _int,
    "float": _float,
    "round": _round,
    "abs": abs,
}
_TESTS: Final = ("defined", "undefined", "none", "number", "string", "boolean", "mapping", "sequence", "true", "false")


def _counted(
    function: Callable[..., Any], pay: Callable[[_Purse, Any], None], *, on_text: bool = False
) -> Callable[..., Any]:
    """A filter that pays for what it is given before it begins."""

    @pass_context
    def apply(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_undefined(value, *args, *kwargs.values())
        purse = _purse(context)
        if on_text:
            value = _said(purse, value)
        for given in (value, *args, *kwargs.values()):
            pay(purse, given)
        return function(value, *args, **kwargs)

    return apply


@pass_context
def _trim(context: Context, value: Any, chars: str | None = None) -> str:
    _refuse_undefined(value, chars)
    purse = _purse(context)
    text = _said(purse, value)
    if chars is None:
        return text.strip()
    chars = _said(purse, chars)
    purse.touch(len(text) * len(chars))  # each of its characters is looked for among them
    return text.strip(chars)


@pass_context
def _replace(context: Context, value: Any, old: str, new: str) -> str:
    _refuse_undefined(value, old, new)
    purse = _purse(context)
    text, old, new = (_said(purse, part) for part in (value, old, new))
    if not old:
        raise StageRefused("the template cannot be rendered: `replace` looks for an empty text")
    purse.touch(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


@pass_context
def _joined_text(context: Context, value: Any, by: str = "", attribute: str | None = None) -> str:
    _refuse_undefined(value, by, attribute)
    purse = _purse(context)
    purse.weigh(value)
    parts = _join(value, by, attribute)
    _refuse_undefined(*parts)
    return "".join(_said(purse, part) for part in parts)


@pass_context
def _default(context: Context, value: Any, otherwise: Any = "", boolean: bool = False) -> Any:
    if isinstance(value, Undefined) or value is None or (boolean and not value):
        return otherwise
    return value


@pass_context
def _a_turn(context: Context, value: str, work: int) -> str:
    _purse(context).pay(work)
    return value


@pass_context
def _weighed(context: Context, value: Any) -> Any:
    if not isinstance(value, Undefined):
        _purse(context).weigh(value)
    return value


@pass_context
def _copied(context: Context, value: Any) -> Any:
    if not isinstance(value, Undefined):
        _purse(context).count(value)
    return value


def _refuse_undefined(*values: Any) -> None:
    for value in values:
        if isinstance(value, Undefined):
            str(value)  # raises, and says the name


def _shortened(text: str) -> str:
    return ascii(text[:200])[1:-1][:200]


_FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "default": _default,
    "d": _default,
    "join": _joined_text,
    **{name: _counted(function, _Purse.weigh, on_text=True) for name, function in _ON_TEXTS.items()},
    **{name: _counted(function, _Purse.count) for name, function in _ON_ENTRIES.items()},
    **{name: _counted(function, _Purse.weigh) for name, function in _ON_VALUES.items()},
    "replace": _replace,
    "trim": _trim,
}


def _sandbox() -> _Sandbox:
    jinja = _Sandbox(
        undefined=StrictUndefined,
        autoescape=False,
        optimized=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_put_in,
        cache_size=0,
    )
    jinja.globals.clear()
    jinja.filters = {**_FILTERS, "joined": _joined_text, "a turn": _a_turn, "weighed": _weighed, "copied": _copied}
    jinja.tests = {name: TESTS[name] for name in _TESTS}
    return jinja


_JINJA: Final = _sandbox()

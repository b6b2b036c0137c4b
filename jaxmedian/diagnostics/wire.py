"""Count what a compiled program sends between devices, from the program itself.

The text of a compiled program names every collective left after optimisation, with the
shapes of one device. Counted are the bytes *each device sends* in one execution; it
receives as many. For n devices in a group and an operand of s bytes, as rings and
pairwise exchanges send them, and no algorithm less:

    all-reduce                    2 s (n - 1) / n
    all-gather                    s (n - 1)
    reduce-scatter, all-to-all    s (n - 1) / n
    collective-broadcast          s (n - 1) / n
    collective-permute            s

Loops count as often as they run, of conditionals the most expensive branch. A branch
that is taken once in K steps by its name, such as the running mean squares of
`noise.per_coordinate`, counts one K-th. What cannot be counted is refused.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Bytes sent, given those of the operand and the size of the group.
_SENT: dict[str, Callable[[float, int], float]] = {
    "all-reduce": lambda operand, n: 2 * operand * (n - 1) / n,
    "all-gather": lambda operand, n: operand * (n - 1),
    "reduce-scatter": lambda operand, n: operand * (n - 1) / n,
    "all-to-all": lambda operand, n: operand * (n - 1) / n,
    "collective-broadcast": lambda operand, n: operand * (n - 1) / n,
    "collective-permute": lambda operand, n: operand,
}
# Bytes of the operand over those of the result, where they differ.
_OPERAND: dict[str, Callable[[float, int], float]] = {
    "all-gather": lambda result, n: result / n,
    "reduce-scatter": lambda result, n: result * n,
}
_UNCOUNTABLE = ("ragged-all-to-all", "send", "recv")


class WireBytes(NamedTuple):
    """What each device sends in one execution of a program.

    Attributes:
      by_collective: kind of collective -> bytes.
      total: bytes of all of them.
      bits_per_coordinate: bits for each coordinate and worker, up and down together.

    >>> WireBytes({"all-reduce": 7.0}, total=7.0, bits_per_coordinate=56.0).total
    7.0
    """

    by_collective: dict[str, float]
    total: float
    bits_per_coordinate: float


def wire_bytes(
    compiled: Any, *, num_coordinates: int | None = None, workers_per_device: int = 1
) -> WireBytes:
    """Reads off a compiled program what each device sends.

    Args:
      compiled: what ``jax.jit(...).lower(...).compile()`` returns.
      num_coordinates: d, that ``bits_per_coordinate`` divides by. By default the
        floating-point numbers in the program's first output, which are the parameters
        of a step and the updates of an optimizer. With parameters sharded over a second
        mesh axis give those of one device.
      workers_per_device: M / D, that it divides by too.

    Returns:
      A `WireBytes`. A float32 mean of 8 devices, one worker each, sends 56 bits a
      coordinate and worker, a packed vote 1.75.

    Raises:
      TypeError: if ``compiled`` is no compiled program.
      ValueError: if it holds a collective that cannot be counted, or one in a loop of
        unknown length; if its first output holds no floating-point number and
        ``num_coordinates`` was left out.

    >>> import jax, jax.numpy as jnp, jaxmedian as jm
    >>> step = jax.jit(lambda params: params / 2)
    >>> jm.diagnostics.wire_bytes(step.lower(jnp.ones(3)).compile())
    WireBytes(by_collective={}, total=0.0, bits_per_coordinate=0.0)
    """
    if not isinstance(compiled, jax.stages.Compiled):
        raise TypeError(
            "`wire_bytes` reads a compiled program: pass "
            f"`step.lower(...).compile()`; got {type(compiled).__name__}."
        )
    by_collective = bytes_in_program(compiled.as_text() or "")
    total = float(sum(by_collective.values()))
    if num_coordinates is None:
        num_coordinates = _floats_in_first_output(compiled.out_info)
    if num_coordinates < 1 or workers_per_device < 1:
        raise ValueError(
            "`num_coordinates` and `workers_per_device` must be at least 1; got "
            f"{num_coordinates} and {workers_per_device}. By default the first are the "
            "floating-point numbers in the program's first output."
        )
    bits = 8 * total / (num_coordinates * workers_per_device)
    return WireBytes(by_collective, total, bits)


def _floats_in_first_output(out_info: Any) -> int:
    first = out_info[0] if type(out_info) is tuple and out_info else out_info
    return sum(
        math.prod(leaf.shape)
        for leaf in jax.tree.leaves(first)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


# --- reading a program ----------------------------------------------------------------


class _Instruction(NamedTuple):
    """One line of a program: ``name = result opcode(operands), attributes``."""

    name: str
    result: str
    opcode: str
    attributes: str


def bytes_in_program(text: str) -> dict[str, float]:
    """Counts the bytes each device sends, by kind of collective, in an HLO text.

    Raises:
      ValueError: if something cannot be counted, naming the instruction.
    """
    header = text.split("\n", 1)[0]
    num_devices = _attribute_int(header, "num_partitions") * _attribute_int(
        header, "replica_count"
    )
    computations, entry = _computations(text)
    counted: dict[str, Counter[str]] = {}

    def count(name: str) -> Counter[str]:
        if name not in counted:
            total: Counter[str] = Counter()
            for instruction in computations.get(name, ()):
                total.update(_of_instruction(instruction, num_devices, count))
            counted[name] = total
        return counted[name]

    return dict(sorted(count(entry).items()))


def _of_instruction(
    instruction: _Instruction,
    num_devices: int,
    count: Callable[[str], Counter[str]],
) -> Counter[str]:
    """Counts one instruction, and the computations it calls."""
    opcode = instruction.opcode
    kind = opcode.removesuffix("-start")
    if kind in _SENT:
        return Counter({kind: _sent(instruction, kind, num_devices)})
    if kind in _UNCOUNTABLE and "is_host_transfer=true" not in instruction.attributes:
        raise ValueError(f"`wire_bytes` cannot count {opcode} ({instruction.name}).")
    if opcode.endswith(("-done", "-update")):
        return Counter()  # counted where it starts
    called = [count(name) for name in _called(instruction.attributes)]
    if opcode == "conditional":
        dearest = max(called, key=lambda branch: branch.total(), default=Counter())
        every = re.search(r"sent_every_(\d+)", instruction.attributes)
        steps = int(every[1]) if every else 1
        return Counter({kind: sent / steps for kind, sent in dearest.items()})
    total: Counter[str] = Counter()
    for callee in called:
        total.update(callee)
    if opcode != "while" or not total:
        return total
    trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.attributes)
    if trips is None:
        raise ValueError(
            f"`wire_bytes` cannot count the collectives in {instruction.name}: the "
            "program does not say how often that loop runs. Compile one step of it."
        )
    return Counter({kind: sent * int(trips[1]) for kind, sent in total.items()})


def _sent(instruction: _Instruction, kind: str, num_devices: int) -> float:
    if kind == "collective-permute":
        pairs = re.findall(r"\{(\d+),(\d+)\}", instruction.attributes)
        if all(source == target for source, target in pairs):
            return 0.0
    n = _group_size(instruction, num_devices)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        return _SENT[kind](_bytes_of(_operands_of_start(instruction.result)), n)
    result = _bytes_of(instruction.result)
    operand = _OPERAND[kind](result, n) if kind in _OPERAND else result
    return _SENT[kind](operand, n)


def _operands_of_start(result: str) -> str:
    """Returns the operands' part of ``(operands, results, contexts)``."""
    elements = _elements(result)
    if len(elements) > 3 and elements[-2:] == ["u32[]", "u32[]"]:
        elements = elements[:-2]
    if elements[0].startswith("("):
        return elements[0]
    return ",".join(elements[: len(elements) // 2])


def _group_size(instruction: _Instruction, num_devices: int) -> int:
    """Returns how many devices take part in one collective."""
    found = re.search(r"replica_groups=(.*)", instruction.attributes)
    if found is None:
        return num_devices
    groups = found[1]
    if listed := re.match(r"\{\{([\d,]+)\}", groups):
        return len(listed[1].split(","))
    if groups.startswith("{}"):
        return num_devices
    if iota := re.match(r"\[\d+,(\d+)\]<=\[", groups):
        return int(iota[1])
    if mesh := re.match(r"mesh\[([^\]]*)\] ?\{([^}]*)\}", groups):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    raise ValueError(
        f"`wire_bytes` cannot read the groups of {instruction.name}: {groups[:60]}."
    )


# --- the text -------------------------------------------------------------------------


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Splits a program into its computations, and says which one is the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif instruction := _instruction(line):
            computations[current].append(instruction)
    return computations, entry


def _instruction(line: str) -> _Instruction | None:
    named = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if named is None:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[named.end() :])
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    operation = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if operation is None:
        return None
    return _Instruction(named[1], rest[:end], operation[1], rest[end:])


def _called(attributes: str) -> list[str]:
    """Returns the names of the computations that an instruction calls."""
    names = re.findall(
        r"(?:calls|to_apply|body|condition|true_computation|false_computation)"
        r"=%?([\w.\-]+)",
        attributes,
    )
    for several in re.findall(
        r"(?:branch_computations|called_computations)=\{([^}]*)\}", attributes
    ):
        names += re.findall(r"[\w.\-]+", several)
    return names


def _bytes_of(shape: str) -> float:
    """Adds up the bytes of all arrays in a shape such as ``(f32[2,3]{1,0}, u8[])``."""
    total = 0.0
    for dtype, dimensions in re.findall(r"([a-z]\w*)\[([\d,<= ]*)\]", shape):
        bits = re.search(r"\d+", dtype)  # f32, bf16, f8e4m3fn, u4; tokens have none
        width = int(bits[0]) if bits else 8 * (dtype == "pred")
        size = math.prod(int(n) for n in re.findall(r"\d+", dimensions))
        total += size * width / 8
    return total


def _elements(shape: str) -> list[str]:
    """Splits ``(a, (b, c), d)`` into its elements, layouts left out."""
    inside = re.sub(r"\{[^}]*\}", "", shape)[1:-1]
    elements, depth = [""], 0
    for character in inside:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            elements.append("")
        else:
            elements[-1] += character
    return [element.strip() for element in elements]


def _closing(text: str) -> int:
    """Returns the place of the parenthesis that closes the first one."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return place
    raise ValueError(f"`wire_bytes` cannot read {text[:60]!r}.")


def _attribute_int(header: str, name: str) -> int:
    found = re.search(rf"{name}=(\d+)", header)
    return int(found[1]) if found else 1

"""Reading a compiled program: the text of XLA's optimised HLO as computations of instructions.

The text is what every back end gives (`Compiled.as_text`), and one line per instruction. Only what counting needs is
taken from it: shapes, operands, and which computations an instruction calls.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

BYTES = {"pred": 1, "s2": 1, "u2": 1, "s4": 1, "u4": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2,
         "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
         "c128": 16}
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)\b.*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_TRIPS = re.compile(r'"?known_trip_count"?:?\s*=?\s*\{\s*"?n"?\s*:\s*"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Shape:
    """Type and sizes of one array, on one device; `near` where it lies in a TPU's own fast memory."""

    dtype: str
    sizes: tuple[int, ...]
    near: bool = False

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def bytes(self) -> int:
        """Size without padding of the layout."""
        return self.elements * BYTES.get(self.dtype, 4 if self.dtype not in ("token", "opaque") else 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name: unique in the program.
        opcode: "dot", "fusion", "all-gather-start" and so on.
        shapes: of the result; several for a tuple, nested ones flattened.
        operands: names of instructions.
        calls: role -> computation: "body", "condition", "calls", "to_apply", "branch0" and so on.
        attributes: the rest of the line.
        root: whether it is its computation's result.
        literal: text between its parentheses.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    calls: dict[str, str]
    attributes: str
    root: bool
    literal: str

    @property
    def bytes(self) -> int:
        """Of all its results."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def traffic(self) -> int:
        """Of those of its results that lie in the device's main memory."""
        return sum(shape.bytes for shape in self.shapes if not shape.near)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in order, and the result's."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """The result; the last instruction where none is marked."""
        marked = [instruction for instruction in self.instructions.values() if instruction.root]
        return marked[-1] if marked else list(self.instructions.values())[-1]

    def users(self, name: str) -> list[Instruction]:
        """Instructions that read `name`."""
        return [other for other in self.instructions.values() if name in other.operands]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations, and which is the entry."""

    computations: dict[str, Computation]
    entry: str

    @property
    def size(self) -> int:
        """Number of instructions."""
        return sum(len(computation.instructions) for computation in self.computations.values())


def parse(text: str) -> Module:
    """The program that `Compiled.as_text()` prints.

    Raises:
        ValueError: there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith((" ", "\t")):
            header = _COMPUTATION.match(line)
            if header and not line.startswith("HloModule"):
                current = Computation(header[2], {})
                computations[header[2]] = current
                entry = header[2] if header[1] else entry
            continue
        start = _INSTRUCTION.match(line)
        if start and current is not None:
            current.instructions[start[2]] = _instruction(line, start)
    if not entry:
        raise ValueError("the text holds no ENTRY computation")
    return Module(computations, entry)


def _instruction(line: str, start: re.Match[str]) -> Instruction:
    rest = line[start.end():]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(_shapes(rest[:end]))
    rest = rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    close = _closing("(" + rest) - 1
    inside, attributes = rest[:close], rest[close + 1:]
    calls = dict(_CALLED.findall(attributes))
    if branches := _BRANCHES.search(attributes):
        names = [name.strip().lstrip("%") for name in branches[1].split(",")]
        calls.update({f"branch{index}": name for index, name in enumerate(names) if name})
    for index, role in enumerate(("true_computation", "false_computation")):
        if role in calls:
            calls[f"branch{index}"] = calls.pop(role)
    return Instruction(start[2], opcode, shapes, tuple(_NAME.findall(inside)), calls, attributes, bool(start[1]),
                       inside)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, sizes, layout in _SHAPE.findall(text):
        yield Shape(dtype, tuple(int(size) for size in sizes.split(",") if size), "S(1)" in layout)


def trip_count(loop: Instruction, module: Module, within: Computation) -> int | None:
    """How often the body of a `while` runs, or None where the program does not say.

    XLA writes it beside loops that it has analysed. Otherwise, on TPUs, the condition compares a counter with a
    constant, and the body adds a constant to it: by more than 1 where the compiler has unrolled the loop.
    """
    if known := _TRIPS.search(loop.attributes):
        return int(known[1])
    condition, body = (module.computations[loop.calls[role]] for role in ("condition", "body"))
    root, names = condition.root, condition
    if root.opcode == "fusion":
        names = module.computations[root.calls["calls"]]
        root = names.root
    limits = [int(one.literal) for one in (*condition.instructions.values(), *names.instructions.values())
              if one.opcode == "constant" and one.literal.isdigit()]
    counters = [index for one in condition.instructions.values() if one.opcode == "get-tuple-element"
                for index in map(int, re.findall(r"index=(\d+)", one.attributes))]
    if "direction=LT" not in root.attributes or len(set(limits)) != 1 or len(set(counters)) != 1:
        return None
    start = _constant(_element(loop.operands[0], counters[0], within), within)
    step = _step(body, counters[0], module)
    return None if step is None else -(-(limits[0] - (start or 0)) // step)


def _element(name: str, index: int, within: Computation) -> str:
    made = within.instructions.get(name)
    return made.operands[index] if made is not None and made.opcode == "tuple" else ""


def _constant(name: str, within: Computation) -> int | None:
    made = within.instructions.get(name)
    while made is not None and made.opcode in ("copy", "bitcast") and made.operands:
        made = within.instructions.get(made.operands[0])
    return int(made.literal) if made is not None and made.opcode == "constant" and made.literal.isdigit() else None


def _step(body: Computation, index: int, module: Module) -> int | None:
    """What a loop's body adds to the counter at `index` of its tuple."""
    name, total = _element(body.root.name, index, body), 0
    for _ in range(16):     # unrolled bodies add again and again
        made = body.instructions.get(name)
        if made is None:
            return None
        if made.opcode in ("get-tuple-element", "parameter"):
            return total or None
        if made.opcode in ("copy", "bitcast"):
            name = made.operands[0]
            continue
        if made.opcode == "fusion":
            inner = module.computations[made.calls["calls"]]
            steps = [value for one in inner.instructions.values()
                     if (value := _constant(one.name, inner)) is not None]
            if inner.root.opcode != "add" or len(steps) != 1:
                return None
            total, name = total + steps[0], made.operands[0]
            continue
        constants = [(_constant(operand, body), operand) for operand in made.operands]
        known = [value for value, _ in constants if value is not None]
        if made.opcode != "add" or len(known) != 1:
            return None
        total += known[0]
        name = next(operand for value, operand in constants if value is None)
    return None


def attribute(instruction: Instruction, name: str) -> tuple[int, ...]:
    """A list of integers among the attributes, as in `lhs_contracting_dims={1}`; in JSON, as in cuBLAS's calls, too."""
    found = re.search(rf'\b"?{name}"?(?:=\{{|:\[)([^}}\]]*)[}}\]]', instruction.attributes)
    return tuple(int(number) for number in re.findall(r"\d+", found[1])) if found else ()

"""Talks with a model in the terminal: `python -m launch.chat --model RUN/tune/model [--image photo.jpg]`.

A line is a question; the conversation so far goes along. Commands: `/image PATH` takes up a picture and begins anew,
`/region X1,Y1,X2,Y2` draws the next numbered box on it (shares of width and height; "Region [0]" in a question) and
begins anew, `/clear` forgets the conversation and its regions, `/quit` ends it. Ctrl-C stops an answer. Lines may be
piped in.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any

from launch import cli
from launch.ask import check_drawing, read_box, read_picture
from spatialllm_jax.errors import UserError

_TICKET = "chat"


@dataclasses.dataclass
class Talk:
    """A conversation so far: its picture, what is drawn on it, what was said."""

    picture: bytes = b""
    regions: tuple[Any, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, talks until the input ends; returns all turns."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder, e.g. RUN/rows/align_in166k/tune/model")
    parser.add_argument("--image", default="", help="JPEG or PNG file to begin with")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--context", type=int, default=0,
                        help="longest conversation in tokens, picture included (0: the picture's and 512)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 for greedy")
    parser.add_argument("--top-p", type=float, default=1.0,
                        help="draw from the likeliest tokens that have so much probability together")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    cli.mesh_flag(parser)
    args = parser.parse_args(argv)
    check_drawing(args.max_new_tokens, args.temperature)
    if not 0 <= args.top_p <= 1:
        raise UserError(f"--top-p {args.top_p:g} must be from 0 to 1")
    talk = Talk(read_picture(args.image, "--image")) if args.image else Talk()

    from convert.engines import load_engine
    from spatialllm_jax.inference.live import Live, Sampling, lanes_for

    engine = load_engine(args.model, batch_size=1, mesh=cli.mesh(args))
    live = Live(engine, lanes_for(engine, args.context, args.max_new_tokens, 1, 1))
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    said: list[list[str]] = []
    for line in _lines():
        try:
            if line.startswith("/"):
                if (found := _command(line, talk)) is None:
                    break
                talk = found
                continue
            answer = _answer(live, talk, line, sampling)
        except UserError as error:
            if not sys.stdin.isatty():
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        said.append([line, answer])
        talk = dataclasses.replace(talk, turns=(*talk.turns, (line, answer))) if answer else talk
    return {"turns": said}


def _lines() -> Iterator[str]:
    """What is typed or piped in, without empty lines."""
    prompt = "> " if sys.stdin.isatty() else ""
    if prompt:
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  input() then edits and remembers lines
        print("a question, or /image PATH, /region X1,Y1,X2,Y2, /clear, /quit")
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return
        if line:
            yield line


def _command(line: str, talk: Talk) -> Talk | None:
    """The conversation after a command; None to end."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/quit":
        return None
    if name == "/clear":
        return Talk(talk.picture)
    if name == "/image":
        return Talk(read_picture(rest, "/image"))
    if name == "/region":
        from spatialllm_jax.questions.types import Region

        if not talk.picture:
            raise UserError("/region needs a picture; give one with /image PATH")
        region = Region(str(len(talk.regions)), read_box(rest, "/region"), "")
        print(f"Region [{region.label}]", flush=True)
        return Talk(talk.picture, (*talk.regions, region))
    raise UserError(f"{name} is no command; use /image, /region, /clear or /quit")


def _answer(live: Any, talk: Talk, question: str, sampling: Any) -> str:
    """Asks, prints the answer as it comes, returns it."""
    from spatialllm_jax.inference.prompts import Prompt, picture_id

    prompt = Prompt(picture_id(talk.picture), talk.picture, question, marks=talk.regions, history=talk.turns)
    live.add(_TICKET, live.ready(prompt, sampling))
    answer = ""
    try:
        while live.busy:
            for updates in live.step():
                for update in updates:
                    answer += update.text
                    print(update.text, end="", flush=True)
    except KeyboardInterrupt:
        live.cancel(_TICKET)
        print(" (stopped)", end="")
        if not sys.stdin.isatty():
            raise
    print(flush=True)
    return answer


if __name__ == "__main__":
    cli.run(main)

"""Asks a model about a picture: `python -m launch.ask --model RUN/tune/model --image photo.jpg "question"`.

Regions are drawn on the picture as numbered boxes: `--region 0.1,0.2,0.4,0.9` (shares of width and height)
becomes "Region [0]". With `--options` the likeliest option is chosen instead of words being generated.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from launch import cli
from spatialllm_jax.errors import UserError


def main(argv: list[str]) -> dict[str, Any]:
    """Parses, asks, prints the answer and returns it."""
    parser = cli.parser(__doc__.splitlines()[0])
    parser.add_argument("question", help="what to ask")
    parser.add_argument("--model", required=True, help="model folder, e.g. RUN/rows/align_in166k/tune/model")
    parser.add_argument("--image", required=True, help="JPEG or PNG file")
    parser.add_argument("--region", action="append", default=[], metavar="X1,Y1,X2,Y2",
                        help="draw a numbered box first; repeat for more")
    parser.add_argument("--options", default="", help="comma-separated answers to choose from")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 for greedy")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    args = parser.parse_args(argv)
    check_drawing(args.max_new_tokens, args.temperature)

    from convert.engines import load_engine
    from spatialllm_jax.inference.prompts import Prompt, picture_id
    from spatialllm_jax.inference.scoring import shares
    from spatialllm_jax.questions.types import Region

    if not args.question.strip():
        raise UserError("the question is empty; write what to ask")
    picture = read_picture(args.image, "--image")
    marks = tuple(Region(str(index), read_box(text, "--region"), "") for index, text in enumerate(args.region))
    options = tuple(option.strip() for option in args.options.split(",") if option.strip())
    engine = load_engine(args.model, batch_size=1)
    prompt = Prompt(picture_id(picture), picture, args.question, options, marks)
    if options:
        scores = engine.score([prompt])[0]
        answer = options[int(scores.argmax())]
        print(answer)
        return {"answer": answer, "probabilities": dict(zip(options, shares(scores).round(4).tolist(), strict=True))}
    answer = engine.generate([prompt], max_new_tokens=args.max_new_tokens, temperature=args.temperature,
                             seed=args.seed)[0]
    print(answer)
    return {"answer": answer}


def check_drawing(max_new_tokens: int, temperature: float) -> None:
    """Raises UserError for what no answer can be drawn by."""
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be at least 1")
    if not 0 <= temperature < math.inf:
        raise UserError(f"--temperature {temperature:g} must be a number, and not negative")


def read_picture(path: str, what: str) -> bytes:
    """A picture's file, looked at; `what` is the flag or command that named it. Raises UserError for none."""
    from spatialllm_jax.data.images import decode

    try:
        picture = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    decode(picture, path)
    return picture


def read_box(text: str, what: str) -> tuple[float, float, float, float]:
    """"X1,Y1,X2,Y2" as shares of width and height; `what` is the flag or command it was given to."""
    try:
        x1, y1, x2, y2 = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"{what} {text} is not X1,Y1,X2,Y2") from None
    if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
        raise UserError(f"{what} {text}: need 0 <= X1 < X2 <= 1 and 0 <= Y1 < Y2 <= 1, as shares of the picture")
    return x1, y1, x2, y2


if __name__ == "__main__":
    cli.run(main)

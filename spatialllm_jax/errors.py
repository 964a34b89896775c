"""What ends a command on purpose."""

import dataclasses


class UserError(Exception):
    """A mistake in what the user gave us: a file, a key, a flag.

    The message is one sentence that names the file, key or flag and says what to do. Commands
    print it without a traceback and exit with code 2 (see `launch.cli`).
    """


@dataclasses.dataclass
class Interrupted(Exception):
    """SIGTERM or Ctrl-C (`signal`) arrived during training; everything was saved at `step`."""

    step: int
    signal: int

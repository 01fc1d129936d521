"""How the command line ends, for tests of its messages."""

import pytest

from tfsimclr import run


def last_words(monkeypatch, config=None, action=None):
    """Returns the message with which the command line ends.

    Args:
        monkeypatch: The fixture.
        config: Config of the run, or None.
        action: Replaces `run.run`, or None.
    """
    with monkeypatch.context() as patch:
        patch.setattr(run.configs, "from_flags", lambda: config)
        if action is not None:
            patch.setattr(run, "run", action)
        with pytest.raises(SystemExit) as stop:
            run._main(["program"])
    message = stop.value.code  # text: Python prints it to stderr and exits with 1
    assert isinstance(message, str) and "\n" not in message
    assert message.startswith("tfsimclr: ")
    return message

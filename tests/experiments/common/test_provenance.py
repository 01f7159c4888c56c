"""The fingerprint of the source changes with what runs, and with nothing else."""

import ast

from experiments.common import provenance


def test_code_is_what_runs_and_not_what_is_said_about_it(tmp_path):
    texts = {
        "plain.py": "class A:\n    x: int = 1\n\ndef f():\n    return 2\n",
        "told.py": '"""Module."""\n\n\nclass A:\n    """A."""\n\n    x: int = 1  # one\n    """The x."""\n'
        '\n\ndef f():\n    """F."""\n    return (2)\n',
        "other.py": "class A:\n    x: int = 1\n\ndef f():\n    return 3\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    plain, told, other = (provenance._code(tmp_path / name) for name in texts)
    assert plain == told != other


def test_a_parser_that_another_thread_has_disturbed_is_asked_again(tmp_path, monkeypatch):
    parse, left = ast.parse, ["once", "twice"]

    def disturbed(text):
        if left:
            raise SystemError(left.pop())
        return parse(text)

    path = tmp_path / "file.py"
    path.write_text("x = 1\n")
    undisturbed = provenance._code(path)
    monkeypatch.setattr(ast, "parse", disturbed)
    assert provenance._code(path) == undisturbed and not left

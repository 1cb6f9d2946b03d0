"""Nothing is printed but through one door, which makes every text printable."""

import ast
import re
from pathlib import Path

import smope_hf

PRINTS = {"print", "echo", "secho", "print_exc", "print_exception", "print_stack", "Console", "warn", "writelines"}
STREAMS = {"stdout", "stderr"}
SHOWN = re.compile(r"\((?:[\w.]+=\w+, )?printable\(")  # the whole of what a log or a warning says
LOGS = {"debug", "info", "warning", "warning_once", "error", "exception", "critical", "log"}


def sayings(source: str) -> list[str]:
    """Calls that write where people read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        to_stream = name == "write" and owner.rpartition(".")[2] in STREAMS
        logs = name in LOGS and owner.endswith("logger")
        if (name in PRINTS or to_stream or logs) and not SHOWN.search(ast.unparse(node)):
            found.append(f"line {node.lineno}: {ast.unparse(node.func)}")
    return found


def test_the_door_is_found_where_it_is_passed_by():
    assert (
        len(sayings("print(x); typer.echo(x); a.print(x); sys.stderr.write(x); logger.warning(x); Console().log()"))
        == 6
    )
    assert sayings("say(x); file.write(x); math.log(x)") == []


def test_nothing_is_printed_but_through_the_one_door():
    """What is printed elsewhere is printed by `say` and its like in printing.py, which show nothing hidden."""
    files = [path for path in Path(smope_hf.__file__).parent.rglob("*.py") if path.name != "printing.py"]
    found = {path.name: sayings(path.read_text(encoding="utf-8")) for path in files}
    assert len(files) > 100 and {name: calls for name, calls in found.items() if calls} == {}

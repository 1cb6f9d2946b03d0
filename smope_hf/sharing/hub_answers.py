"""What the Hub's answers mean for a push."""

from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..base.printable import printable

LONGEST_ANSWER = 500  # characters of what the Hub says


def read_answer(error: BaseException | None) -> tuple[int | None, str | None]:
    """Status and message of the answer behind an error; no status where none came, no message where it is no such."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code, error.server_message or str(error).splitlines()[0]
        if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
            return None, f"{type(error).__name__}: {error}"
        error = error.__cause__
    return None, None


def asked_to_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait before another attempt, at most 60; 0 where it asks for none."""
    response = getattr(error, "response", None)
    seconds = "" if response is None else response.headers.get("Retry-After", "")
    return min(float(seconds), 60.0) if seconds.isdigit() else 0.0


def explain(status: int | None, problem: str, repo_id: str) -> str:
    """What an answer of the Hub means for a push, and what to do."""
    problem = printable(problem, LONGEST_ANSWER)
    if status == 401:
        return f"The Hub knows no token that may write to {repo_id}: run `hf auth login`, or set HF_TOKEN. ({problem})"
    if status == 403:
        return f"This token may not write to {repo_id}. Take one with write access, or another repository. ({problem})"
    if status == 404:
        return f"The Hub has no {repo_id} that this token can see. Check the name, and the token's access. ({problem})"
    if status in (409, 412):
        return f"{repo_id} keeps changing while this push runs. Nothing was overwritten. Try again later. ({problem})"
    if status is None:
        return f"The Hub could not be reached; {repo_id} has the last state that was pushed whole. ({problem})"
    return f"The Hub answered {status} for {repo_id}, whose last whole state is unchanged. ({problem})"

"""How often and how much at once one address may ask, and all of them together."""

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limits import Limits
from routes import NotTaken, Route

MINUTE = 60.0  # seconds
ADDRESSES = 10_000  # counted one by one in a minute; those beyond share one count
AT_ONCE_EACH, AT_ONCE_ALL = 200, 1500  # requests that are being answered; an open page holds one or two


class Rates:
    """Counts of the running minute, so that what is remembered stays small.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self._minute = -1
        self._counts: Counter = Counter()
        self._addresses: set[str] = set()
        self._running: Counter = Counter()

    def check(self, route: Route, address: str):
        """Count a request.

        Raises:
            NotTaken: when there were too many of this minute (429).
        """
        minute, spent = divmod(self.clock(), MINUTE)
        if minute != self._minute:
            self._minute = minute
            self._counts.clear(), self._addresses.clear()
        if len(self._addresses) >= ADDRESSES and address not in self._addresses:
            address = "all others"
        self._addresses.add(address)
        for who, most in ((address, route.each), ("", route.all)):
            self._counts[route.name, who] += 1
            if self._counts[route.name, who] > most:
                wait = math.ceil(MINUTE - spent)
                raise NotTaken(429, f"Too many requests. Try again in {wait} seconds.", wait)

    @contextmanager
    def running(self, address: str) -> Iterator[None]:
        """While a request is being answered.

        Raises:
            NotTaken: when too many are (503).
        """
        if self._running[address] >= AT_ONCE_EACH or self._running.total() >= AT_ONCE_ALL:
            raise NotTaken(503, "Too many requests at once. Try again in some seconds.", 5)
        self._running[address] += 1
        try:
            yield
        finally:
            self._running[address] -= 1
            if not self._running[address]:
                del self._running[address]


class Visitors:
    """Which visits come from which address, so that one address cannot take the place of all others.

    Args:
        limits: of visits.
        clock: seconds.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic):
        self.limits, self.clock = limits, clock
        self._seen: dict[str, tuple[str, float]] = {}  # by the visit's key: address, and when it last asked

    def check(self, key: str, address: str):
        """Note that a visit asks for something.

        Raises:
            NotTaken: for one more visit than may come from its address (429), or than there may be (503).
        """
        now = self.clock()
        if key not in self._seen:
            idle = self.limits.idle_seconds
            self._seen = {other: seen for other, seen in self._seen.items() if now - seen[1] <= idle}
            if sum(where == address for where, _ in self._seen.values()) >= self.limits.address_visits:
                raise NotTaken(429, "Too many pages are open from your address. Close some, or come later.", 60)
            if len(self._seen) >= 2 * self.limits.visits:  # visits that have ended are among them
                raise NotTaken(503, "Too many people are here at the moment. Try again in some minutes.", 60)
        self._seen[key] = address, now


def address_of(scope) -> str:
    """Who asks. Of IPv6 the network of 64 bits, all of which one visitor has."""
    host = (scope.get("client") or ("",))[0]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host
    if parsed.version == 6 and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)

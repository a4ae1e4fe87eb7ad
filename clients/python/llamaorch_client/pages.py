# SPDX-License-Identifier: Apache-2.0
"""Lists that come page by page, until the server says that there is no more."""

from llamaorch_client.errors import IntegrityError

PAGE_SIZE = 100
# A server that never ends a list must not keep a client for ever.
PAGES_MAX = 100_000


class Pages:
    """Where a list is: `token` names the page to ask for, while there is `more`.

    `what` is listed, for people.
    """

    def __init__(self, what: str) -> None:
        self.token = ""
        self.more = True
        self._what = what
        self._turned = 0

    def turn(self, next_page_token: str) -> None:
        """Goes on to the page after the one that was answered.

        Raises:
            IntegrityError: when the list would never end, or has more than `PAGES_MAX` pages.
        """
        self._turned += 1
        self.more = bool(next_page_token)
        if not self.more:
            return
        if next_page_token == self.token:
            raise IntegrityError(f"the server answered the same page of {self._what} twice")
        if self._turned == PAGES_MAX:
            raise IntegrityError(f"the list of {self._what} has more than {PAGES_MAX} pages")
        self.token = next_page_token

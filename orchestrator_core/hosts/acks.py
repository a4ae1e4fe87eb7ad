"""When acknowledgements of snapshots were written: what bounds the age of a report. LO-203."""

from bisect import bisect_right

# Acknowledgements within this time share an entry.
STEP_MS = 100
# A hundred seconds: what is echoed later than that is as old as the stream.
ENTRIES_MAX = 1_024


class SentAcks:
    """The acknowledgements of one stream, numbered from 1; 0 is its opening."""

    def __init__(self, opened_ms: int) -> None:
        self._first_ids = [0]
        self._sent_ms = [opened_ms]

    def sent(self, ack_id: int, now_ms: int) -> None:
        """Notes the next acknowledgement."""
        if now_ms - self._sent_ms[-1] < STEP_MS:
            return
        self._first_ids.append(ack_id)
        self._sent_ms.append(now_ms)
        if len(self._first_ids) > ENTRIES_MAX:
            del self._first_ids[1], self._sent_ms[1]

    def as_of_ms(self, echoed_ack_id: int) -> int:
        """An instant before which a report with that echo cannot have been made. O(log n).

        At most `STEP_MS` before the acknowledgement; earlier where that is long ago.
        """
        return self._sent_ms[bisect_right(self._first_ids, echoed_ack_id) - 1]

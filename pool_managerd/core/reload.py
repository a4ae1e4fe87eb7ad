"""Which model a pool serves, and how far its last reload is. OC-CTRL-2003."""

import enum
from dataclasses import dataclass


class ReloadState(enum.Enum):
    """How far a reload is; the last three are its ends."""

    WAITING = "waiting"
    LOADING = "loading"
    DONE = "done"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"


def kept_former(detail: str, pool_id: str, chars_max: int) -> str:
    """What a pool says that serves its former model after a reload, and how it says so no more."""
    again = f"`llorch reload {pool_id} --model REF` with one that can be loaded"
    way_out = (
        "; it serves its former model, and says so until the next reload: "
        f"{again}, or `llorch reload {pool_id}` to stay with it"
    )
    return detail[: max(0, chars_max - len(way_out))] + way_out


@dataclass(slots=True)
class Reload:
    """The last reload that was asked for; `problem` is what is wrong with its model, or empty."""

    reload_id: str
    state: ReloadState = ReloadState.WAITING
    problem: str = ""

    def refused(self, problem: str) -> None:
        """The new model is not here: the engine goes on as it is."""
        self.state, self.problem = ReloadState.ROLLED_BACK, problem

    def loading(self) -> None:
        """The engine is replaced now."""
        if self.state is ReloadState.WAITING:
            self.state = ReloadState.LOADING

    def served(self) -> None:
        """An engine serves: that of the new model, or of the former one after a problem."""
        if self.state is ReloadState.LOADING:
            self.state = ReloadState.ROLLED_BACK if self.problem else ReloadState.DONE

    def failed(self, problem: str, *, former: bool) -> None:
        """An engine did not start: that of the new model, or the one that the pool had anyway."""
        if self.state is ReloadState.LOADING:
            self.problem = self.problem or problem
            self.state = ReloadState.FAILED if former else self.state


class ModelChoice:
    """Which model a pool serves, and which its engine starts with next.

    Models are references; an empty one is the configured model. `asked` is that of a reload that
    waits, `found` whether that one is on this host, `problem` why the last one was taken back, for
    people.
    """

    def __init__(self) -> None:
        self.serves = ""
        self.wanted = ""
        self.asked: str | None = None
        self.found = False
        self.problem = ""
        self.last: Reload | None = None

    @property
    def next(self) -> str:
        """The model that is loaded next: of a reload that waits, else the one that is wanted."""
        return self.wanted if self.asked is None else self.asked or self.serves

    def ask(self, model_ref: str, reload_id: str) -> bool:
        """Notes a reload, in place of one that waits; False where one did."""
        self.found = self.found and self.asked == model_ref
        waited, self.asked = self.asked is not None, model_ref
        self.last = Reload(reload_id)
        return not waited

    def refuse(self, problem: str, told: str) -> None:
        """The model that was asked for is not here, as `told` says for long."""
        self.asked, self.found, self.problem = None, False, told
        if self.last is not None:
            self.last.refused(problem)

    def loading(self) -> None:
        """The engine is replaced now, for the reload that waited."""
        self.wanted, self.problem = self.asked or self.serves, ""
        self.asked, self.found = None, False
        if self.last is not None:
            self.last.loading()

    def served(self) -> None:
        """An engine serves the model that was wanted."""
        self.serves = self.wanted
        if self.last is not None:
            self.last.served()

    def failed(self, problem: str) -> bool:
        """No engine serves the wanted model; True where another one did before, which comes back.

        A reload is atomic: whatever is wrong with the new model, the former one is loaded again.
        """
        former = self.wanted == self.serves
        if self.last is not None:
            self.last.failed(problem, former=former)
        return not former

    def roll_back(self, problem: str) -> None:
        """The former model is wanted again."""
        self.problem, self.wanted = problem, self.serves

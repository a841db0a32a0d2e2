"""What a decision asks Redis to do: a fence, expectations and words. Layer: core, pure.

A `Commit` is a plain value: it can be printed, compared and stored. `core.decide` makes those of
deliveries and `client` those of callers; `commit.lua` is the only reader. The names are those of
the script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Route(NamedTuple):
    """One stream: the events of one type for one step. Without a step: the system stream of the workflow."""

    workflow: str
    type: str
    step: str
    #: Deliveries of the step in streams per run; 0: no limit.
    limit: int = 0
    #: Deliveries of the step in streams over all runs; 0: no limit.
    ceiling: int = 0
    #: Every type that the step accepts: what is held for it may belong to the stream of any of
    #: them.
    types: tuple[str, ...] = ()
    #: On the way to a step that joins events: how many of each of `types` one delivery takes.
    #: Without it a delivery is whole, as it is once it was in a stream.
    slots: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """How the script and the hold list name this stream within its workflow."""
        return f"{self.type}:{self.step}" if self.step else self.type


# -- fences: the proof that a commit may act
# ---------------------------------------------------------


class EntryFence(NamedTuple):
    """The entry is pending and mine; the commit settles it and gives its slot back."""

    route: Route
    entry: str
    delivery: str


class StrayFence(NamedTuple):
    """The entry is pending and mine, and its run cannot be read: no key of the run is touched."""

    route: Route
    entry: str


class EffectFence(NamedTuple):
    """The entry is pending and mine, and stays so: an effect while the step runs."""

    route: Route
    entry: str


class TimerFence(NamedTuple):
    """The timer has not fired yet."""

    member: str


class OverdueFence(NamedTuple):
    """The run's deadline has passed."""


class OperationFence(NamedTuple):
    """A caller's operation was not applied yet."""

    operation: str


class ControlFence(NamedTuple):
    """The run is live."""


class DamagedFence(NamedTuple):
    """The run is live; which of its keys are damaged does not matter."""


class AmendFence(NamedTuple):
    """The run is recorded, live or ended, and a caller's operation was not applied yet.

    For the store only, which lives as long as the record.
    """

    operation: str


class NewRunFence(NamedTuple):
    """No run has this id, or the same start made it."""

    digest: str
    fields: Sequence[str | int | bytes]


Fence = (
    EntryFence
    | StrayFence
    | EffectFence
    | TimerFence
    | OverdueFence
    | OperationFence
    | ControlFence
    | DamagedFence
    | AmendFence
    | NewRunFence
)


# -- expectations: what others can move
# --------------------------------------------------------------


class Has(NamedTuple):
    """A waiter is still open."""

    waiter: str


class Is(NamedTuple):
    """A field of the run's record has this value ('' for none)."""

    field: str
    value: str


class Room(NamedTuple):
    """Fewer runs are live than the fleet takes (else the commit answers `full`)."""


class FewWaits(NamedTuple):
    """Fewer steps of the run wait than may (else the commit answers `full`)."""


class Live(NamedTuple):
    """Another run is live."""

    run_id: str


class Version(NamedTuple):
    """Nobody appended to or released this buffer since it was read."""

    buffer: str
    version: int


class Quota(NamedTuple):
    """One more event of this type does not complete the buffer."""

    buffer: str
    type: str
    quota: tuple[tuple[str, int], ...]


class Staged(NamedTuple):
    """A staged result is whole, and nobody waits for its events."""

    delivery: str
    route: Route
    length: int


class Stored(NamedTuple):
    """A stored value is the one that was read (version 0: none)."""

    field: str
    version: int


class Free(NamedTuple):
    """The edit lock is free or held by this token."""

    token: str


class Locked(NamedTuple):
    """The edit lock is held by this token."""

    token: str


class Unapplied(NamedTuple):
    """This call of this execution was not applied yet (else the commit answers `applied`)."""

    delivery: str
    execution: str
    call: int


class Counted(NamedTuple):
    """So many early commits of this execution are known (else Redis lost some: `rewound`)."""

    delivery: str
    execution: str
    calls: int


class Kept(NamedTuple):
    """A delivery that went ahead is still known (else Redis lost it: `rewound`)."""

    by: str
    delivery: str


class Recorded(NamedTuple):
    """The record of another run has these values ('' for none)."""

    run_id: str
    fields: Mapping[str, str]


class Located(NamedTuple):
    """The pending work of another run is where it was read, all of it."""

    run_id: str
    open: Mapping[str, str]


class Withheld(NamedTuple):
    """So many deliveries of another run wait for a slot of this step."""

    run_id: str
    step: str
    length: int


Expectation = (
    Has
    | Is
    | Room
    | FewWaits
    | Live
    | Version
    | Quota
    | Staged
    | Stored
    | Free
    | Locked
    | Unapplied
    | Counted
    | Kept
    | Recorded
    | Located
    | Withheld
)


# -- words: what is written
# --------------------------------------------------------------------------


class Emit(NamedTuple):
    """Adds deliveries to a step's stream, or to its hold list while no slot is free.

    With `guard` each delivery is added once for the delivery that sends it. `awaitable` events go
    to the waiters first when somebody waits for their type; `also` repeats one event for a further
    stream.
    """

    route: Route
    deliveries: tuple[tuple[str, bytes], ...]
    guard: str = ""
    awaitable: bool = True
    also: bool = False


class Pair(NamedTuple):
    """Adds a delivery to a step that joins several: the one that completes a set is emitted.

    `route` has slots; only deliveries of the same `scope` ('' for none) come together. The other
    fields are those of `Emit`.
    """

    route: Route
    delivery: str
    record: bytes
    scope: str = ""
    guard: str = ""
    awaitable: bool = True
    also: bool = False


class Open(NamedTuple):
    """Opens a scope, with the deliveries (stream, id, record) that it emits, each once, when it ends."""

    scope: str
    releases: tuple[tuple[Route, str, bytes], ...]


class Gather(NamedTuple):
    """Adds events to what a scope collects for a stream; `quota` (0: none) of them let it emit at once.

    `type` is what the events are to waiters; `awaitable` and `also` are those of `Emit`.
    """

    scope: str
    route: Route
    type: str
    deliveries: tuple[tuple[str, bytes], ...]
    quota: int = 0
    awaitable: bool = True
    also: bool = False


class Within(NamedTuple):
    """What is emitted from here on is pending in the scopes that are tallied behind it."""


class Tally(NamedTuple):
    """Changes how much is pending in a scope, by `by` and by what was emitted since the last count.

    When nothing is, the scope ends, and emits what it still has for these streams.
    """

    scope: str
    by: int
    releases: tuple[Route, ...]


class Consume(NamedTuple):
    """Removes what a scope collected for a stream, or without a route the set of a joined delivery."""

    name: str
    route: Route | None = None


class Publish(NamedTuple):
    """Adds an entry to the public stream; with `guard`, once per `field`."""

    entry: bytes
    guard: str = ""
    field: str = ""


class Mark(NamedTuple):
    """Publishes which entries of `guard` the settling execution did not repeat, if any."""

    entry: bytes
    guard: str
    repeated: tuple[str, ...]


class Append(NamedTuple):
    """Adds an event to a buffer, if its `Quota` left room."""

    buffer: str
    type: str
    event: bytes


class Take(NamedTuple):
    """Empties a buffer."""

    buffer: str
    version: int


class Stage(NamedTuple):
    """Adds a part of a wide result to its stage."""

    delivery: str
    route: Route
    first: bool
    deliveries: tuple[tuple[str, bytes], ...]


class Unstage(NamedTuple):
    """Turns a whole stage into held deliveries."""

    delivery: str
    route: Route
    length: int
    #: As that of `Emit`.
    also: bool = False


class SetTimer(NamedTuple):
    """Adds a timer that is due in `delay_ms` of Redis time."""

    member: str
    delay_ms: int
    data: bytes


class DropTimer(NamedTuple):
    """Removes a timer."""

    member: str


class Wait(NamedTuple):
    """Adds a waiter for events of a type ('*': any)."""

    waiter: str
    type: str
    data: bytes


class Unwait(NamedTuple):
    """Removes a waiter."""

    waiter: str
    type: str


class Keep(NamedTuple):
    """Adds an event to the inbox, of which the last `kept` stay."""

    event: bytes
    kept: int


class Unkeep(NamedTuple):
    """Takes an event out of the inbox."""

    event: bytes


class Tell(NamedTuple):
    """Adds a row to the run's history, with what this commit let into streams so far."""

    row: bytes


class Note(NamedTuple):
    """Writes where a delivery is."""

    delivery: str
    where: str


class Forget(NamedTuple):
    """Erases the early effects of a settled delivery."""

    delivery: str


class Count(NamedTuple):
    """Counts an early commit of an execution, by its number there: it is `Unapplied` once."""

    delivery: str
    execution: str
    call: int


class Write(NamedTuple):
    """Sets a top-level key of the store to its next version."""

    field: str
    value: bytes


class Unwrite(NamedTuple):
    """Removes a top-level key of the store."""

    field: str


class Lock(NamedTuple):
    """Takes the edit lock for `ttl_ms`."""

    token: str
    ttl_ms: int


class Unlock(NamedTuple):
    """Frees the edit lock if it is held by this token."""

    token: str


class Deadline(NamedTuple):
    """Arms the run's deadline, counted from `age_ms` ago, unless it is armed."""

    age_ms: int


class Wake(NamedTuple):
    """Lets one held delivery go, for which a place under the ceiling was kept."""

    route: Route


class Lend(NamedTuple):
    """Gives the slot of a delivery, and its place under the ceiling, to others while it goes on.

    It counts as delivered `times` from now on.
    """

    route: Route
    entry: str
    delivery: str
    times: int


class Recount(NamedTuple):
    """Says how often a delivery that goes on counts as delivered."""

    route: Route
    entry: str
    times: int


class Join(NamedTuple):
    """Makes the run one of those that belong to another."""

    owner: str


class Leave(NamedTuple):
    """Takes ended runs out of those that belong to the run."""

    runs: tuple[str, ...]


class Place(NamedTuple):
    """Takes one of `limit` places of its workflow, or queues the run for one; then what it emits is held."""

    workflow: str
    limit: int


class Admit(NamedTuple):
    """The run has got its place: what it holds for a step may go."""

    route: Route


class Park(NamedTuple):
    """Keeps a delivery of an ended run (it stands alone in its commit)."""

    route: Route
    entry: str


class Save(NamedTuple):
    """Keeps what a timer of an ended run would have emitted (it stands alone in its commit)."""

    delivery: str
    label: str
    record: bytes


class Remember(NamedTuple):
    """Keeps what is recorded of the run at this moment, with what it is about; the last `kept` stay."""

    about: bytes
    kept: int


class Withdraw(NamedTuple):
    """Takes an entry out of its stream, whoever has it."""

    route: Route
    entry: str


class LetGo(NamedTuple):
    """Takes the deliveries of another run that wait for a slot of this step, and lets go what fits."""

    run_id: str
    route: Route
    length: int


class Adopt(NamedTuple):
    """Takes over a further key of another run, by its name behind that of the run."""

    run_id: str
    name: str


class Fill(NamedTuple):
    """Sets fields of a further key of the run, by its name behind that of the run."""

    name: str
    rows: Mapping[str, bytes]


class Pile(NamedTuple):
    """Adds values to a list of the run, by its name behind that of the run."""

    name: str
    values: Sequence[bytes]


class Expunge(NamedTuple):
    """Forgets one early effect of a delivery, which is then done again."""

    delivery: str
    field: str


class Succeed(NamedTuple):
    """Notes in an ended run that this run goes on from what it left."""

    run_id: str


class DeadLetter(NamedTuple):
    """Adds an entry to the dead letters."""

    fields: tuple[str | int | bytes, ...]


class End(NamedTuple):
    """Ends the run: status, terminal public entry, more fields of its record."""

    status: str
    entry: bytes
    fields: tuple[str | bytes, ...] = ()
    parks: bool = False
    #: Whose places the run may have taken one of; '': that of the fence's entry.
    workflow: str = ""


Word = (
    Emit
    | Pair
    | Open
    | Gather
    | Within
    | Tally
    | Consume
    | Publish
    | Mark
    | Append
    | Take
    | Stage
    | Unstage
    | SetTimer
    | DropTimer
    | Wait
    | Unwait
    | Keep
    | Unkeep
    | Tell
    | Note
    | Forget
    | Count
    | Write
    | Unwrite
    | Lock
    | Unlock
    | Deadline
    | Wake
    | Lend
    | Recount
    | Join
    | Leave
    | Place
    | Admit
    | Park
    | Save
    | Remember
    | Withdraw
    | LetGo
    | Adopt
    | Fill
    | Pile
    | Expunge
    | Succeed
    | DeadLetter
    | End
)


class Commit(NamedTuple):
    """What happens to one run, completely or not at all."""

    run_id: str
    fence: Fence
    words: Sequence[Word] = ()
    expects: Sequence[Expectation] = ()


class Answer(NamedTuple):
    """What Redis answered to a commit.

    `word` is one of applied, gone, exists, unknown-run, over, parking, conflict, rewound, full,
    broken, refused.
    A conflict on a buffer names it with its version and length; `missing` is what a buffer lacks
    after an append; `detail` is the text of a refusal.
    """

    word: str
    buffer: str = ""
    version: int = 0
    length: int = 0
    missing: int = 0
    detail: str = ""

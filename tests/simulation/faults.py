"""The faults: each is an action of a world, with arguments drawn from its seed.

To add one, write a coroutine function with the decorator `fault`; its keyword arguments are drawn
from the ranges or choices given there. `effects.py` says how it shows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.fakes.replies import HANG, HTML_500, RESET, UNAUTHORIZED, Reply, error
from tests.simulation.disk import BROKEN, FULL, READ_ONLY, DiskError
from tests.simulation.filters import RULES

if TYPE_CHECKING:
    from tests.simulation.world import World

Apply = Callable[..., Coroutine[Any, Any, None]]
_ALL_SINKS = frozenset({"influxdb", "embedded"})


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault."""

    apply: Apply
    weight: float
    arguments: Mapping[str, Any]

    def draw(self, chance: random.Random) -> dict[str, Any]:
        """Return arguments: a range of two floats is drawn log-uniformly, a list has choices."""
        return {
            name: round(wanted[0] * (wanted[1] / wanted[0]) ** chance.random(), 3)
            if isinstance(wanted, tuple)
            else chance.choice(wanted)
            for name, wanted in self.arguments.items()
        }


FAULTS: dict[str, Fault] = {}


def fault(*, weight: float = 1.0, **arguments: Any) -> Callable[[Apply], Apply]:
    """Register a fault.

    `weight` says how often it is drawn compared with the others; 0: only with `--kinds`.
    """

    def register(apply: Apply) -> Apply:
        FAULTS[apply.__name__] = Fault(apply, weight, arguments)
        return apply

    return register


# --- the service


@fault(weight=2, down_s=(0.5, 300.0))
async def crash(world: World, *, down_s: float) -> None:
    """Kill the service between two callbacks."""
    world.crash()
    await world.start_again(down_s)


@fault(weight=2, statement=list(range(1, 60)), down_s=(0.5, 30.0))
async def crash_in_statement(world: World, *, statement: int, down_s: float) -> None:
    """Kill the service inside one of its next SQL statements."""
    if await world.crash_in_statement(statement):
        await world.start_again(down_s)


@fault(weight=2, resumption=(1.0, 3000.0), down_s=(0.5, 30.0))
async def crash_between_steps(world: World, *, resumption: float, down_s: float) -> None:
    """Kill the service where one of its tasks waits for something that has just come."""
    await world.crash_between_steps(round(resumption))
    await world.start_again(down_s)


@fault(resumption=(1.0, 1000.0), first=["crash", "terminate"], down_s=(0.1, 30.0))
async def crash_in_start(world: World, *, resumption: float, first: str, down_s: float) -> None:
    """Kill the service in the middle of a start."""
    if first == "crash":
        world.crash()
    else:
        await world.terminate()
    await world.start_again(down_s)
    await world.crash_between_steps(round(resumption))
    await world.start_again(down_s)


@fault(resumption=(1.0, 200.0), down_s=(0.1, 30.0))
async def crash_in_stop(world: World, *, resumption: float, down_s: float) -> None:
    """Kill the service while it stops after SIGTERM."""
    world.spawn(world.terminate())
    await world.crash_between_steps(round(resumption))
    await world.start_again(down_s)


@fault(weight=0, appends=[1, 1, 2, 3, 5], resumption=(1.0, 100.0), down_s=(0.5, 100.0))
async def crash_in_backfill(
    world: World, *, appends: int, resumption: float, down_s: float
) -> None:
    """Kill the service soon after it has journaled some of what it reads back."""
    if await world.until_read_back(appends):
        await world.crash_between_steps(round(resumption))
        await world.start_again(down_s)


@fault(times=[2, 3, 5, 8], seconds=(0.01, 5.0))
async def crash_repeatedly(world: World, *, times: int, seconds: float) -> None:
    """Kill the service several times within seconds."""
    for _ in range(times):
        world.crash()
        await world.start_again(seconds)
        await asyncio.sleep(seconds)


@fault(weight=2, down_s=(0.5, 300.0))
async def terminate(world: World, *, down_s: float) -> None:
    """Stop the service with SIGTERM."""
    await world.terminate()
    await world.start_again(down_s)


@fault(weight=2, sink=["influxdb", "embedded"], seconds=(5.0, 600.0), down_s=(0.1, 10.0))
async def remove_sink(world: World, *, sink: str, seconds: float, down_s: float) -> None:
    """Configure one sink only for a while; what the journal has stays for the other.

    Not while the disk fails: points that were only in memory are lost for a removed sink
    (decision 6).
    """
    if len(world.sinks) == 1 or world.disk_error is not None:
        return
    world.sinks.discard(sink)
    await world.terminate()
    await world.start_again(down_s)
    await asyncio.sleep(seconds)
    world.sinks.add(sink)
    await world.terminate()
    await world.start_again(down_s)


@fault(jump_s=[-7200.0, -30.0, -1.0, 1.0, 45.0, 3600.0, 86_400.0])
async def set_our_clock(world: World, *, jump_s: float) -> None:
    """Set the clock of the service's machine."""
    world.loop.clock_offset_s += jump_s


_DISK_ERRORS: Mapping[str, DiskError] = {
    "full": FULL,
    "broken": BROKEN,
    "read-only": READ_ONLY,
}


@fault(
    weight=3,
    error=list(_DISK_ERRORS),
    seconds=(0.01, 300.0),
    meanwhile=["run", "run", "crash", "terminate"],
)
async def disk_fails(world: World, *, error: str, seconds: float, meanwhile: str) -> None:
    """Let every write to the disk fail, perhaps while the service stops and starts."""
    if len(world.sinks) == 1:
        return  # see `remove_sink`
    failing = _DISK_ERRORS[error]
    world.fail_disk(failing)
    await asyncio.sleep(seconds / 2)
    if meanwhile == "crash":
        world.crash()
    if meanwhile == "terminate":
        await world.terminate()
    if meanwhile != "run":
        await world.start_again(0.5)
    await asyncio.sleep(seconds / 2)
    if world.disk_error is failing:
        world.fail_disk(None)


@fault(factor=(10.0, 1000.0), seconds=(1.0, 120.0))
async def slow_disk(world: World, *, factor: float, seconds: float) -> None:
    """Make all work of threads slow."""
    world.loop.work_factor = factor
    await asyncio.sleep(seconds)
    world.loop.work_factor = 1.0


# --- settings and identity


@fault(weight=0, stop=["crash", "terminate"], down_s=(0.1, 30.0))
async def add_sink(world: World, *, stop: str, down_s: float) -> None:
    """Configure the sink that the first start did not have, on the journal as it is."""
    if not (missing := _ALL_SINKS - world.sinks_since.keys()):
        return
    world.sinks |= missing
    if stop == "crash":
        world.crash()
    else:
        await world.terminate()
    await world.start_again(down_s)


@fault(weight=0, rules=list(RULES), stop=["crash", "terminate"], down_s=(0.1, 100.0))
async def change_filter(world: World, *, rules: str, stop: str, down_s: float) -> None:
    """Change the entity filter: in its file while the service runs, else for the next start."""
    world.change_filter(rules)
    if world.plan.is_filter_in_file:
        return
    if stop == "crash":
        world.crash()
    else:
        await world.terminate()
    await world.start_again(down_s)


# --- the connection to Home Assistant


@fault(seconds=(1.0, 400.0))
async def revoke_token(world: World, *, seconds: float) -> None:
    """Close all connections and refuse the token, and accept it again after a while."""
    accepted, world.home_assistant.token = world.home_assistant.token, "another token"
    world.spawn(world.home_assistant.drop())
    await asyncio.sleep(seconds)
    if accepted != "another token":
        world.home_assistant.token = accepted


@fault(weight=2)
async def cut_home_assistant(world: World) -> None:
    """Reset all connections to Home Assistant."""
    world.home_link.cut()


@fault(weight=2, seconds=(1.0, 200.0))
async def silence_home_assistant(world: World, *, seconds: float) -> None:
    """Let nothing through to Home Assistant: the connections are half-open."""
    world.home_link.is_silent = True
    await asyncio.sleep(seconds)
    world.home_link.resume()


@fault(factor=(10.0, 2000.0), seconds=(1.0, 120.0))
async def slow_home_assistant(world: World, *, factor: float, seconds: float) -> None:
    """Delay everything on the way to and from Home Assistant."""
    world.home_link.delay_factor = factor
    await asyncio.sleep(seconds)
    world.home_link.delay_factor = 1.0


@fault(weight=2, link=["home", "database"], piece=(5.0, 2000.0), seconds=(1.0, 60.0))
async def split_frames(world: World, *, link: str, piece: float, seconds: float) -> None:
    """Let whatever is sent arrive in small pieces."""
    slow = world.link(link)
    slow.largest_piece = round(piece)
    await asyncio.sleep(seconds)
    slow.largest_piece = None


@fault(weight=2, link=["home", "database"], bytes_left=(1.0, 20_000.0))
async def cut_inside_frame(world: World, *, link: str, bytes_left: float) -> None:
    """Reset all connections after so many more bytes, which is inside a frame or an answer."""
    world.link(link).cut_after = round(bytes_left)


@fault(link=["home", "database"], by_server=[True, True, False])
async def half_close(world: World, *, link: str, by_server: bool) -> None:
    """Let one side of every connection end its sending half."""
    world.link(link).half_close(by_server=by_server)


@fault(frame=["", "{", "[]", "null", '{"type":"event"}', '"\xff\xfe"', "\x00\x00\x00"])
async def garbled_frame(world: World, *, frame: str) -> None:
    """Send the service something that is no message."""
    world.home_assistant.send_raw(frame.encode("latin-1"))


# --- Home Assistant


@fault(weight=2, down_s=(3.0, 300.0), starting_s=(1.0, 60.0))
async def restart_home_assistant(world: World, *, down_s: float, starting_s: float) -> None:
    """Restart Home Assistant in an orderly way."""
    await world.restart_home_assistant(down_s=down_s, starting_s=starting_s, is_clean=True)


@fault(weight=2, down_s=(3.0, 300.0), starting_s=(1.0, 60.0))
async def kill_home_assistant(world: World, *, down_s: float, starting_s: float) -> None:
    """Kill Home Assistant: its recorder loses what it has not committed."""
    await world.restart_home_assistant(down_s=down_s, starting_s=starting_s, is_clean=False)


@fault(seconds=(1.0, 400.0))
async def lock_recorder(world: World, *, seconds: float) -> None:
    """Lock the recorder's database, as a backup does."""
    world.house.recorder_.is_locked = True
    await asyncio.sleep(seconds)
    world.house.recorder_.is_locked = False


@fault(weight=2, entity=list(range(10)), seconds=(0.1, 600.0))
async def remove_entity(world: World, *, entity: int, seconds: float) -> None:
    """Remove an entity, and add it again."""
    entity_id = sorted(world.house.entities)[entity]
    world.house.remove(entity_id)
    await asyncio.sleep(seconds)
    if world.is_home_assistant_up:
        world.house.restore(entity_id)


@fault()
async def move_area(world: World) -> None:
    """Move a device to another area."""
    if world.is_home_assistant_up:
        world.house.move_area()


# --- the database


@fault(weight=2, seconds=(1.0, 400.0))
async def kill_database(world: World, *, seconds: float) -> None:
    """Kill the database and start it again."""
    await world.database.kill()
    await asyncio.sleep(seconds)
    await world.database.start()


@fault(seconds=(1.0, 200.0))
async def silence_database(world: World, *, seconds: float) -> None:
    """Let nothing through to the database."""
    world.database_link.is_silent = True
    await asyncio.sleep(seconds)
    world.database_link.resume()


@fault(weight=2)
async def cut_database(world: World) -> None:
    """Reset all connections to the database."""
    world.database_link.cut()


_ANSWERS: Mapping[str, Reply] = {
    "401": UNAUTHORIZED,
    "403": error(403, "insufficient permissions for write", code="forbidden"),
    "404": error(404, "organization name not found", code="not found"),
    "413": error(413, "request too large", code="request too large"),
    "429": error(429, "too many requests", Retry_After="20"),
    "429-long": error(429, "too many requests", Retry_After="200"),
    "500": HTML_500,
    "502": Reply(status=502, body="bad gateway"),
    "503": error(503, "unavailable", Retry_After="5"),
    "504": Reply(status=504),
    "200": Reply(status=200, body="ok"),
    "302": Reply(status=302, headers={"Location": "http://elsewhere.example/"}),
    "reset": RESET,
    "hang": HANG,
    "stored-reset": Reply(act="reset", keeps=True),
    "stored-500": Reply(status=500, body="oops", keeps=True),
    "half": Reply(act="half"),
    "cut": Reply(status=400, act="cut"),
}


@fault(weight=6, answer=list(_ANSWERS), seconds=(1.0, 300.0))
async def database_answers(world: World, *, answer: str, seconds: float) -> None:
    """Let the database answer every write like this for a while."""
    reply = world.database.fault = _ANSWERS[answer]
    await asyncio.sleep(seconds)
    if world.database.fault is reply:
        world.database.fault = None


@fault(weight=2, word=["office_power", "sensor.", "="], partial=[True, False], seconds=(1.0, 300.0))
async def refuse_lines(world: World, *, word: str, partial: bool, seconds: float) -> None:
    """Let the database refuse each line with this word in it: of one entity, many, or all."""

    def refusal(line: bytes) -> str | None:
        return "unable to parse: simulated" if word.encode() in line.split(b" ")[0] else None

    world.database.refuses = refusal
    world.database.partial = partial
    await asyncio.sleep(seconds)
    if world.database.refuses is refusal:
        world.database.refuses = lambda _: None
        world.database.partial = False


@fault(field=["value", "state_value", "available"], seconds=(1.0, 300.0))
async def field_type_conflict(world: World, *, field: str, seconds: float) -> None:
    """Let a field have another type in the database for a while."""
    world.database.expect_type(field, int)
    await asyncio.sleep(seconds)
    world.database.forget_types()


# --- the recorder and the clock of Home Assistant


@fault(weight=0, lag_s=(20.0, 900.0), seconds=(30.0, 1200.0), restart=["no", "no", "service"])
async def late_recorder(world: World, *, lag_s: float, seconds: float, restart: str) -> None:
    """Let the recorder be minutes behind, and catch up later."""
    recorder = world.house.recorder_
    recorder.lag_s = lag_s
    if restart == "service":
        await world.terminate()
        await world.start_again(seconds / 4)
    await asyncio.sleep(seconds)
    if recorder.lag_s == lag_s:
        recorder.lag_s = 0.0


@fault(weight=0, keep_s=(1.0, 1200.0), gap=[True, False])
async def purge_recorder(world: World, *, keep_s: float, gap: bool) -> None:
    """Let the recorder keep only the last seconds, perhaps as soon as a gap is open."""
    if gap:
        await world.until_gap_is_open()
    world.house.purge(keep_s)


@fault(weight=0, keep_s=(1.0, 300.0), queries=(1.0, 60.0))
async def purge_between_queries(world: World, *, keep_s: float, queries: float) -> None:
    """Let the recorder purge after so many more queries, which is while a gap is filled."""
    world.house.purge_at_query(round(queries), keep_s)


@fault(
    weight=0,
    down_s=(3.0, 60.0),
    seconds=(5.0, 900.0),
    is_clean=[True, False],
    service=["run", "run", "crash", "terminate"],
)
async def remove_recorder(
    world: World, *, down_s: float, seconds: float, is_clean: bool, service: str
) -> None:
    """Let Home Assistant run without a recorder for a while, perhaps also when the service starts.

    A restart takes it away, and another brings it back.
    """
    world.house.has_recorder = False
    await world.restart_home_assistant(down_s=down_s, starting_s=2.0, is_clean=is_clean)
    if service == "crash":
        world.crash()
    if service == "terminate":
        await world.terminate()
    if service != "run":
        await world.start_again(seconds / 4)
    await asyncio.sleep(seconds)
    if world.is_calm:
        return  # there is a recorder again
    world.house.has_recorder = True
    await world.restart_home_assistant(down_s=down_s, starting_s=2.0, is_clean=is_clean)


@fault(
    weight=0,
    command=["history/history_during_period", "logbook/get_events", "recorder/list_statistic_ids"],
    seconds=(5.0, 900.0),
)
async def refuse_command(world: World, *, command: str, seconds: float) -> None:
    """Let Home Assistant not know a command, as without the integration it belongs to."""
    world.home_assistant.unknown_commands.add(command)
    await asyncio.sleep(seconds)
    world.home_assistant.unknown_commands.discard(command)


@fault(weight=0, entity=["light.desk", "sensor.office_power"], seconds=(5.0, 200.0))
async def fail_history(world: World, *, entity: str, seconds: float) -> None:
    """Let Home Assistant fail at all history of an entity that includes this moment, for a while.

    Not for ten attempts: then the service leaves out what Home Assistant fails to show.
    """
    world.house.fail_history(entity)
    await asyncio.sleep(seconds)
    world.house.unreadable = None


@fault(weight=0, entity=["light.desk"], state=["on", "off"])
async def set_state(world: World, *, entity: str, state: str) -> None:
    """Let an entity have a state: no fault, but some need such a change at their side."""
    world.house.set_state(entity, state)


@fault(
    weight=0,
    jump_s=[-3600.0, -600.0, -60.0, -7.0, -2.0, 2.0, 7.0, 60.0, 600.0, 3600.0],
    restart=["no", "no", "restart", "kill"],
    service=["run", "run", "run", "crash", "terminate"],
)
async def set_home_clock(world: World, *, jump_s: float, restart: str, service: str) -> None:
    """Set the clock of Home Assistant, perhaps while it restarts, or while the service is down."""
    if service == "crash":
        world.crash()
    if service == "terminate":
        await world.terminate()
    if restart == "no":
        world.set_home_clock(jump_s)
    else:
        is_clean = restart == "restart"
        restarting = world.restart_home_assistant(down_s=5.0, starting_s=2.0, is_clean=is_clean)
        world.spawn(restarting)
        await asyncio.sleep(2.0)
        world.set_home_clock(jump_s)
    if service != "run":
        await world.start_again(10.0)

"""Keeps a handful of programs running and ends them in order: the life of `qwenq up` after its preparations.

A program that ends is started again, after a delay that doubles from half a second to half a minute and is
forgotten once it has lived for a healthy minute. Until the stack has been ready once, a program that dies five
times in a row ends the whole: that is a wrong setting and not an accident.

The first SIGINT, SIGTERM or SIGHUP asks every program to end (SIGTERM, in the order of their start), those
marked `last` after the others, and kills what is left after the grace time; the second signal kills at once.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup, TaskStatus
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential

from qwenq.problems import Problem
from qwenq.processes import Child, Program

FIRST_DELAY = 0.5  # seconds
LONGEST_DELAY = 30.0
HEALTHY_SECONDS = 60.0
DEATHS_BEFORE_READY = 5
GRACE_SECONDS = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _DiedYoung(Exception):
    """A program ended before its healthy minute; the message says how."""


class Supervisor:
    """Runs programs until it is told to stop. Make it and use it inside one event loop, on the main thread.

    Args:
        say: called with a program's name (None for the supervisor's own words) and one line of output.
        on_change: called whenever a pid in `children` has changed.
        grace: seconds that programs have to end by themselves.
        healthy_seconds: a program that lived this long is started again at once and without a history.
    """

    def __init__(
        self,
        say: Callable[[str | None, str], None],
        *,
        on_change: Callable[[], None] = lambda: None,
        grace: float = GRACE_SECONDS,
        healthy_seconds: float = HEALTHY_SECONDS,
    ) -> None:
        self.children: dict[str, Child] = {}
        self._say = say
        self._on_change = on_change
        self._grace = grace
        self._healthy_seconds = healthy_seconds
        self._failure: str | None = None
        self._ready = False
        self._hurry = False
        self._work = anyio.CancelScope()  # cancelled to stop
        self._patience = anyio.CancelScope()  # cancelled to hurry
        self._stopping = anyio.Event()
        self._ended: dict[str, anyio.Event] = {}
        self._tasks: TaskGroup

    async def run(self, start: Callable[[], Awaitable[None]]) -> str | None:
        """Await `start` (it calls `launch`, and returns when the stack is ready), then run until told to stop.

        Returns:
            None after a signal; otherwise why the stack could not be brought up: the message of the `Problem` that
            `start` raised, or the program that kept dying.
        """
        async with anyio.create_task_group() as self._tasks:
            await self._tasks.start(self._obey_signals)
            with self._work:
                try:
                    await start()
                    self._ready = True
                except Problem as problem:
                    self.give_up(str(problem))
                await anyio.sleep_forever()
            await self._stop()
            self._tasks.cancel_scope.cancel()
        return self._failure

    def launch(self, program: Program) -> None:
        """Start `program` and keep it running."""
        name = program.name
        child = Child(program, lambda line: self._say(name, line), self._on_change)
        self.children[name] = child
        self._ended[name] = anyio.Event()
        self._tasks.start_soon(self._keep, child)

    def give_up(self, reason: str) -> None:
        """Stop everything; `run` returns `reason`."""
        self._failure = self._failure or reason
        self._work.cancel()

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        # What we were started with as ignored (nohup) stays ignored.
        wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        with anyio.open_signal_receiver(*wanted) as received:
            task_status.started()
            async for number in received:
                if not self._work.cancel_called:
                    self._say(None, f"{number.name}: stopping (once more to kill at once)")
                    self._work.cancel()
                else:
                    self._say(None, f"{number.name}: killing what is left")
                    self._hurry = True
                    self._patience.cancel()

    async def _keep(self, child: Child) -> None:
        """Run `child` life after life, until the stack stops or it proves hopeless."""
        try:
            while not self._stopping.is_set():
                lives = AsyncRetrying(
                    retry=retry_if_exception_type(_DiedYoung),
                    wait=wait_exponential(multiplier=FIRST_DELAY, max=LONGEST_DELAY),
                    stop=self._is_hopeless,
                    before_sleep=self._tell_delay,
                    sleep=self._sleep_until_stopping,
                    reraise=True,
                )
                await lives(self._live, child)
        except _DiedYoung as death:
            self.give_up(f"{death}, {DEATHS_BEFORE_READY} times in a row; its output above says why")
        finally:
            self._ended[child.program.name].set()

    async def _live(self, child: Child) -> None:
        """One life of `child`. Returns when it was healthy for long enough or the stack stops."""
        if self._stopping.is_set():
            return
        born = anyio.current_time()
        status = await child.run()
        if self._stopping.is_set():
            return
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        message = f"{child.program.name} {how}"
        if anyio.current_time() - born < self._healthy_seconds:
            raise _DiedYoung(message)
        self._say(None, f"{message}; starting it again")

    def _is_hopeless(self, lives: RetryCallState) -> bool:
        return not self._ready and lives.attempt_number >= DEATHS_BEFORE_READY

    def _tell_delay(self, lives: RetryCallState) -> None:
        death = lives.outcome.exception() if lives.outcome else None
        self._say(None, f"{death}; starting it again in {lives.upcoming_sleep:g} s")

    async def _sleep_until_stopping(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._stopping.wait()

    async def _stop(self) -> None:
        self._stopping.set()
        for last in (False, True):
            children = [child for child in self.children.values() if child.program.last is last]
            for child in children:
                child.terminate()
            if not self._hurry:
                with anyio.CancelScope(deadline=anyio.current_time() + self._grace) as self._patience:
                    await self._until_ended(children)
            for child in children:
                if child.pid is not None:
                    self._say(None, f"{child.program.name} (pid {child.pid}) has not ended; killing it")
                    child.kill()
            await self._until_ended(children)

    async def _until_ended(self, children: list[Child]) -> None:
        for child in children:
            await self._ended[child.program.name].wait()

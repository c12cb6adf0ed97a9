"""The workloads. Each says its title, how long a full run takes, what it needs besides the tree (base: mq's release
before; original: the schema that mq replaces; pgq; npm), and has a function that takes a bench.Bench and returns a measure.Result."""
import dataclasses
import typing


@dataclasses.dataclass
class Workload:
    title: str
    seconds: int
    needs: typing.Tuple[str, ...]
    run: typing.Callable


ALL = {}


def workload(name, title, seconds, *needs):
    """Registers the function as the workload of that name."""
    def register(function):
        ALL[name] = Workload(title, seconds, needs, function)
        function.title = title
        return function
    return register


def duration(seconds):
    return '%d s' % seconds if seconds < 100 else '%d min' % round(seconds / 60)


def load():
    """Imports the files that register workloads, and puts those in the order of their numbers, the others behind them."""
    from workloads import (burn, cost, end_to_end, horizon, idle, latency, layouts, leased, outside, receiving, scaling, sending,
                           wal)  # noqa: F401
    for name in sorted(ALL, key=lambda name: (not name.startswith('W'), int(name[1:]) if name.startswith('W') else 0, name)):
        ALL[name] = ALL.pop(name)


load()

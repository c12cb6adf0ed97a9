"""Clocks, medians, pairs of runs, and what a run cost the machine."""
import os
import sys
import time

STARTED = time.monotonic()


def say(text):
    """A line of progress."""
    print('[%5.0f s] %s' % (time.monotonic() - STARTED, text), file=sys.stderr, flush=True)


class Wrong(Exception):
    """A run that lost or doubled a message, or could not be measured: it fails the workload."""


def expect(is_so, text):
    if not is_so:
        raise Wrong(text)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def percentile(values, share):
    """The smallest value that is not less than this share (0 to 1) of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, int(-(-share * len(ordered) // 1)) - 1))]


def wait_until(condition, seconds, what, pause=0.005):
    """Returns the first true value of the condition; fails after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        expect(time.monotonic() < end, 'waited %d s in vain: %s' % (seconds, what))
        time.sleep(pause)


def alternate(rounds, sides, shown='{:,.0f}/s'):
    """Runs the sides ({label: function that returns a figure}) by turns, each second round in the opposite order, so
    that neither always comes after what its neighbour left to the disk. Returns {label: figures}."""
    figures = {label: [] for label in sides}
    for turn in range(rounds):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for label in order:
            figure = sides[label]()
            figures[label].append(figure)
            say('  round %d of %d: %s %s' % (turn + 1, rounds, label, shown.format(figure)))
    return figures


def cpu_seconds(pid):
    """What the process has used so far, or None when it is gone."""
    try:
        with open('/proc/%d/schedstat' % pid) as file:
            used = int(file.read().split()[0]) / 1e9
        if used > 0:
            return used
    except OSError:
        pass
    try:
        with open('/proc/%d/stat' % pid) as file:
            fields = file.read().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')
    except OSError:
        return None


class Result:
    """What a workload found out; page.py shows it."""

    def __init__(self, name, title, sizes):
        self.name, self.title, self.sizes = name, title, sizes
        self.comparisons, self.figures, self.tables, self.series, self.remarks = [], [], [], [], []

    def compare(self, text, unit, figures, ours, theirs, target=None, better='more', of=None):
        """A pair of sides. The ratio is the median of the pairs' ratios, ours by theirs, or theirs by ours where less
        is better: more than 1 always says that ours is ahead. target: the least ratio."""
        pairs = list(zip(figures[ours], figures[theirs]))
        ratios = [(a / b if better == 'more' else b / a) if a and b else 0.0 for a, b in pairs]
        ratio = median(ratios)
        self.comparisons.append({
            'text': text, 'unit': unit, 'better': better, 'sizes': of,
            'ours': {'label': ours, 'values': figures[ours]}, 'theirs': {'label': theirs, 'values': figures[theirs]},
            'ratio': ratio, 'ratio_low': min(ratios), 'ratio_high': max(ratios),
            'target': target, 'met': None if target is None else ratio >= target})
        say('  %s: ratio %.3g (%.3g to %.3g)%s' % (text, ratio, min(ratios), max(ratios),
            '' if target is None else ', target %g: %s' % (target, 'met' if ratio >= target else 'missed')))

    def figure(self, text, unit, values, most=None, least=None, exactly=None):
        """A figure of its own, whose target is a bound."""
        middle = median(values)
        met = None
        if most is not None:
            met = middle <= most
        elif least is not None:
            met = middle >= least
        elif exactly is not None:
            met = all(value == exactly for value in values)
        self.figures.append({'text': text, 'unit': unit, 'values': values, 'most': most, 'least': least,
                             'exactly': exactly, 'met': met})
        say('  %s: %.4g %s%s' % (text, middle, unit, '' if met is None else ', met' if met else ', missed'))

    def table(self, title, head, rows):
        self.tables.append({'title': title, 'head': head, 'rows': rows})
        say('  ' + title)
        for row in [head] + rows:
            say('    ' + ' | '.join(str(cell) for cell in row))

    def plot(self, file, title, x, y, lines, log=False):
        """Lines over time; lines is {label: [(x, y), ...]}. Of many points the greatest of each few are kept."""
        def fewer(points, most=400):
            step = -(-len(points) // most) or 1
            return [max(points[i:i + step], key=lambda point: point[1]) for i in range(0, len(points), step)]
        self.series.append({'file': file, 'title': title, 'x': x, 'y': y, 'log': log,
                            'lines': {label: [[round(a, 2), float('%.4g' % b)] for a, b in fewer(points)] for label, points in lines.items()}})

    def remark(self, text):
        self.remarks.append(text)
        say('  ' + text)

    def as_dict(self):
        return dict(vars(self))

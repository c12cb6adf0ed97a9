"""Plots as SVG, readable on a light and on a dark page."""
import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 320, 76, 16, 44, 46
LIGHT = {'text': '#24292f', 'grid': '#d0d7de', 'page': '#ffffff', 'lines': ['#0969da', '#bc4c00', '#1a7f37', '#8250df', '#bf3989']}
DARK = {'text': '#e6edf3', 'grid': '#3d444d', 'page': '#0d1117', 'lines': ['#58a6ff', '#f0883e', '#3fb950', '#bc8cff', '#f778ba']}


def colors(of):
    return '.page { fill: %s; } text { fill: %s; } .grid { stroke: %s; } ' % (of['page'], of['text'], of['grid']) + ' '.join(
        '.line-%d { stroke: %s; }' % line for line in enumerate(of['lines']))


STYLE = """
  svg { font: 12px system-ui, sans-serif; } .title { font-size: 14px; font-weight: 600; }
  .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
  %s
  @media (prefers-color-scheme: dark) { %s }
""" % (colors(LIGHT), colors(DARK))


def ticks(low, high, wanted=5):
    """Round numbers from low to high, about so many."""
    if high <= low:
        high = low + 1
    step = 10 ** math.floor(math.log10((high - low) / wanted))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= wanted)
    first = math.floor(low / step)
    return [round(i * step, 10) for i in range(first, math.ceil(high / step) + 1)]


def shown(value):
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            return '%g%s' % (value / size, letter)
    return '%g' % value


def svg(series):
    """The text of a file that shows the series: a dict with title, x, y, log, and lines, {label: [[x, y], ...]}."""
    lines = {label: points for label, points in series['lines'].items() if points}
    xs = [x for points in lines.values() for x, _ in points] or [0, 1]
    ys = [y for points in lines.values() for _, y in points] or [0, 1]
    x_ticks = ticks(min(min(xs), 0), max(xs), 8)
    if series['log']:
        least = max(min((y for y in ys if y > 0), default=1), 0.01)
        low, high = math.floor(math.log10(least)), math.ceil(math.log10(max(max(ys), least * 10)))
        y_ticks = [10.0 ** power for power in range(low, high + 1)]
    else:
        y_ticks = ticks(0, max(max(ys), 1e-9))
    scale = (lambda y: math.log10(max(y, y_ticks[0]))) if series['log'] else (lambda y: y)

    def across(x):
        return LEFT + (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)

    def down(y):
        bottom, top = scale(y_ticks[0]), scale(y_ticks[-1])
        return HEIGHT - BOTTOM - (scale(y) - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img">' % (WIDTH, HEIGHT, WIDTH, HEIGHT),
           '<title>%s</title>' % escape(series['title']), '<style>%s</style>' % STYLE,
           '<rect class="page" width="%d" height="%d"/>' % (WIDTH, HEIGHT),
           '<text class="title" x="%d" y="18">%s</text>' % (LEFT, escape(series['title']))]
    for y in y_ticks:
        out.append('<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>' % (LEFT, WIDTH - RIGHT, down(y), down(y)))
        out.append('<text x="%d" y="%.1f" text-anchor="end">%s</text>' % (LEFT - 6, down(y) + 4, shown(y)))
    for x in x_ticks:
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % (across(x), HEIGHT - BOTTOM + 18, shown(x)))
    out.append('<text x="%d" y="%d" text-anchor="end">%s</text>' % (WIDTH - RIGHT, HEIGHT - 8, escape(series['x'])))
    out.append('<text x="8" y="36">%s</text>' % escape(series['y']))
    at = LEFT
    for number, (label, points) in enumerate(lines.items()):
        kind = 'line line-%d' % (number % 5)
        path = ' '.join('%.1f,%.1f' % (across(x), down(y)) for x, y in points)
        out.append('<polyline class="%s" points="%s"/>' % (kind, path))
        out.append('<line class="%s" x1="%d" x2="%d" y1="32" y2="32"/>' % (kind, at, at + 18))
        out.append('<text x="%d" y="36">%s</text>' % (at + 24, escape(label)))
        at += 40 + 7 * len(label)
    return '\n'.join(out + ['</svg>', ''])

"""docs/benchmarks.md: made of the results and of the notes beside them."""
import json
import os
import textwrap

import plot
import workloads
from measure import median

INTRODUCTION = """\
`make bench` measures all of this and writes this page. `make bench WORKLOAD=W1 QUICK=1` measures
one workload in less than a minute. [Contributing](../CONTRIBUTING.md#benchmarks) says more.

Each figure is the median of several rounds. In a round all sides run one after the other, and each
second round goes in the opposite order. A ratio is the median of the ratios of the rounds, with the
lowest and the highest as its spread; more than 1 says that mq is ahead. All sides share one
server, except for the release before, which has a server of its own beside it. The handler is a
PL/pgSQL function over a jsonb payload that does nothing, unless the workload says otherwise. A run
that loses or doubles a message fails.
"""


def number(value):
    """Three digits or more, without exponents."""
    if isinstance(value, str):
        return value
    if abs(value) >= 100 or value == int(value):
        return format(round(value), ',')
    return '%.3g' % value


def with_unit(value, unit):
    text = number(value)
    return text + unit if unit in ('/s', '%', '×') else (text + ' ' + unit).strip()


def spread(low, high):
    return '%s to %s' % (number(low), number(high))


def table(head, rows):
    lines = ['| ' + ' | '.join(str(cell).replace('|', '\\|') for cell in row) + ' |' for row in [head] + rows]
    return '\n'.join([lines[0], '|' + '---|' * len(head)] + lines[1:]) + '\n'


def verdict(met):
    return '' if met is None else 'met' if met else 'missed'


def comparison_row(found):
    ours, theirs = median(found['ours']['values']), median(found['theirs']['values'])
    target = '' if found['target'] is None else '≥ %s' % number(found['target'])
    return [found['text'], with_unit(ours, found['unit']), with_unit(theirs, found['unit']), number(found['ratio']),
            spread(found['ratio_low'], found['ratio_high']), target, verdict(found['met'])]


def figure_row(found):
    values, target = found['values'], ''
    for sign, key in (('≤', 'most'), ('≥', 'least'), ('=', 'exactly')):
        if found[key] is not None:
            target = '%s %s' % (sign, with_unit(found[key], found['unit']))
    return [found['text'], with_unit(median(values), found['unit']), '', '', spread(min(values), max(values)) if len(values) > 1 else '',
            target, verdict(found['met'])]


HEAD = ['figure', 'mq', 'beside it', 'ratio', 'spread', 'target', '']


def overview(results):
    rows = []
    for name, found in results.items():
        for row in [comparison_row(c) for c in found['comparisons'] if c['target'] is not None] + [
                figure_row(f) for f in found['figures'] if f['met'] is not None]:
            rows.append(['[%s](#%s)' % (name, name.lower())] + row)
    return table(['workload'] + HEAD, rows)


def sizes(found):
    parts = []
    for name, value in found['sizes'].items():
        values = [number(v) for v in (value if isinstance(value, list) else [value])]
        parts.append('%s: %s' % (name, ', '.join(values)))
    return '; '.join(parts + ['rounds: %d' % found['rounds']])


def wrapped(text):
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False) + '\n'


def section(name, found, notes, first, directory):
    # The heading is the number alone, so that links to it survive a change of the words.
    out = ['## %s\n' % name, wrapped(workloads.ALL[name].title[0].upper() + workloads.ALL[name].title[1:] + '.')]
    if found:
        out.append(wrapped('Measured with ' + sizes(found) + '.'))
        if found['environment']['versions']['mq'] != first['environment']['versions']['mq'] or found['date'] != first['date']:
            out.append(wrapped('This one: mq %s, %s.' % (found['environment']['versions']['mq'], found['date'])))
        rows = [comparison_row(c) for c in found['comparisons']] + [figure_row(f) for f in found['figures']]
        if rows:
            out.append(table(HEAD, rows))
        for one in found['tables']:
            out += [wrapped('%s:' % one['title']), table(one['head'], one['rows'])]
        for series in found['series']:
            os.makedirs(directory, exist_ok=True)
            with open('%s/%s' % (directory, series['file']), 'w') as file:
                file.write(plot.svg(series))
            out.append('![%s](benchmarks/%s)\n' % (series['title'], series['file']))
        out += [wrapped(text) for text in found['remarks']]
    else:
        out.append('Not measured yet with this version.\n')
    if notes:
        out.append(notes)
    return out


def machine(found):
    where = found['environment']
    settings = '; '.join('`%s` %s' % setting for setting in where['settings'].items())
    versions = ', '.join('%s %s' % version for version in where['versions'].items())
    return [wrapped('%s, Linux %s, %d cores (%s), %d GB of memory. %s. %s.' % (
        where['system'], where['kernel'], where['cores'], where['cpu'], where['memory_gb'], versions, found['date'])),
        wrapped('Settings: %s; all others as installed.' % settings)]


def read(path):
    if not os.path.exists(path):
        return ''
    with open(path) as file:
        return file.read()


def write(results, notes, document):
    """Writes the page of the results that are in the first directory, and the plots beside it."""
    found = {name: json.loads(text) for name in workloads.ALL if (text := read('%s/%s.json' % (results, name)))}
    out = ['# Benchmarks\n', INTRODUCTION]
    first = None
    if found:
        first = max(found.values(), key=lambda one: one['date'])
        # Not every workload needs every peer.
        versions = {}
        for one in found.values():
            versions.update(one['environment']['versions'])
        versions['mq'] = first['environment']['versions']['mq']
        out += machine(dict(first, environment=dict(first['environment'], versions=versions)))
        if any(one['quick'] for one in found.values()):
            out.append('This is of a quick run: the sizes are small, and the figures say little.\n')
        out.append(overview(found))
    if text := read(notes + '/general.md'):
        out.append(text)
    for name in workloads.ALL:
        out += section(name, found.get(name), read('%s/%s.md' % (notes, name)), first, os.path.dirname(document) + '/benchmarks')
    with open(document, 'w') as file:
        file.write('\n'.join(out))

"""The closing table of a suite, kept in a document."""


def lines_of(head, rows):
    """A table, line by line."""
    line = lambda cells: '| %s |' % ' | '.join(cells)
    return [line(head), '|%s' % ('---|' * len(head))] + [line(row) for row in rows]


def put(path, name, lines):
    """Puts the lines between the marks of this name in the document."""
    begin, end = '<!-- %s: begin -->' % name, '<!-- %s: end -->' % name
    with open(path) as file:
        text = file.read()
    before, after = text.split(begin)[0], text.split(end)[1]
    with open(path, 'w') as file:
        file.write('%s%s\n\n%s\n\n%s%s' % (before, begin, '\n'.join(lines), end, after))

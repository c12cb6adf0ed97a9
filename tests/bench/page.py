def write(results, notes, document):
    pass

-- Begins with the repositories in the table line, as generate.py has made them up: their hosts, and a sync job for each of
-- those that are known before the stream tells of them.
INSERT INTO hosts SELECT line ->> 'did', line ->> 'host', (line ->> 'listed')::boolean FROM line;
SELECT count(follow_repo(did)) FROM hosts WHERE listed;

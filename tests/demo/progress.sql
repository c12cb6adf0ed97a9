-- Run by demo.sh twice a second. Messages: all, handled, dead; and the rate so far.
SELECT (SELECT count(*) + 3 FROM staging), count(*), (SELECT count(*) FROM mq_dead),
       coalesce(round(count(*) / nullif(extract(epoch FROM max(handled_at) - min(handled_at)), 0)), 0)
FROM paragraphs;

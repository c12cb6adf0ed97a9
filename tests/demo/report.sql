-- Run by demo.sh when all is handled.
\pset footer off
\pset border 1

\echo
\echo '== What was handled'
SELECT count(*) AS "messages handled", count(DISTINCT document) AS "documents",
       round(extract(epoch FROM max(handled_at) - min(handled_at)), 2) AS "seconds",
       round(count(*) / nullif(extract(epoch FROM max(handled_at) - min(handled_at)), 0)) AS "per second"
FROM paragraphs;

\echo '== Was the order kept? (order of handling against order in the document)'
SELECT count(*) AS "documents", count(*) FILTER (WHERE kept) AS "in order",
       CASE WHEN bool_and(kept) THEN 'yes, in every document' ELSE 'NO' END AS "order kept"
FROM (SELECT document, array_agg(number ORDER BY handled) = array_agg(number ORDER BY number) AS kept
      FROM paragraphs GROUP BY document) AS documents;

\echo '== The message that could not be handled is a dead letter'
SELECT channel_args AS "document", payload_json ->> 'number' AS "number", attempts_made, reason, sqlstate, error
FROM mq_dead ORDER BY died_at LIMIT 10;
SELECT attempt, to_char(failed_at, 'HH24:MI:SS.MS') AS "failed at", error FROM mq_failures ORDER BY failed_at LIMIT 10;

\echo '== A search in the index that the handler built: no warranty for a particular purpose'
SELECT round(ts_rank(words, query)::numeric, 3) AS "rank",
       regexp_replace(document, '^/usr/share/', '') AS "document", number AS "no",
       regexp_replace(ts_headline('english', body, query, 'MaxWords=10, MinWords=5, StartSel=[, StopSel=]'),
                      '\s+', ' ', 'g') AS "snippet"
FROM paragraphs, websearch_to_tsquery('english', 'warranty "particular purpose"') AS query
WHERE words @@ query
ORDER BY ts_rank(words, query) DESC, document, number LIMIT 5;

-- What demo.sh wants to know.
SELECT bool_and(kept) AS ok FROM (
  SELECT array_agg(number ORDER BY handled) = array_agg(number ORDER BY number) AS kept
  FROM paragraphs GROUP BY document
  UNION ALL SELECT (SELECT count(*) FROM paragraphs) = (SELECT count(*) + 2 FROM staging)
  UNION ALL SELECT (SELECT count(*) FROM mq_dead WHERE attempts_made = 3 AND reason = 'exhausted') = 1
  UNION ALL SELECT (SELECT count(*) FROM mq_dead) = 1
) AS checks \gset
\if :ok
\else
  \echo 'The figures above are not what they should be.'
  DO $$ BEGIN RAISE 'demo failed'; END $$;
\endif

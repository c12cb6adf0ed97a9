-- Run by demo.sh: sends every document, a transaction each. Its paragraphs keep their
-- order, since they share a channel: the document is the channel's argument.
SELECT format($$
    SELECT mq_send_many('documents',
             array_agg(jsonb_build_object('number', number, 'body', body) ORDER BY number),
             channel_args => %1$L, ordered => true)
    FROM staging WHERE document = %1$L $$, document)
FROM staging GROUP BY document ORDER BY document
\gexec

-- A document whose second paragraph has a number that is none: the handler raises.
SELECT mq_send('documents', payload, channel_args => 'a broken document', ordered => true,
               retries => 2, retry_backoff => '200ms')
FROM (VALUES ('{"number": 1, "body": "The first paragraph is sound."}'::jsonb),
             ('{"number": "two", "body": "The second is not."}'),
             ('{"number": 3, "body": "The third waits for it, then goes its way."}')) AS broken (payload);

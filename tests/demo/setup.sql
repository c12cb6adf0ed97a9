-- Run by demo.sh in a new database: the extension, what the handler writes, and the handler.
CREATE EXTENSION mq;

-- The paragraphs before they are sent. COPY fills it.
CREATE TABLE staging (document text, number int, body text);

-- The full-text index. handled numbers the rows in the order in which they were handled.
CREATE TABLE paragraphs (
  handled bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  handled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  document text NOT NULL,
  number int NOT NULL,
  body text NOT NULL,
  words tsvector GENERATED ALWAYS AS (to_tsvector('english', body)) STORED,
  UNIQUE (document, number)
);
CREATE INDEX paragraphs_words ON paragraphs USING gin (words);

-- The handler. Its row and the removal of the message commit together, so a paragraph is
-- in the index exactly once whatever happens; the UNIQUE above would tell.
CREATE FUNCTION index_paragraph(message mq_message) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO paragraphs (document, number, body)
  VALUES (message.channel_args,
          (message.payload_json ->> 'number')::int,
          message.payload_json ->> 'body');
END
$$;

SELECT mq_register_handler('documents', 'index_paragraph(mq_message)');

#!/usr/bin/env node
// A consumer of mq in Node, with pg. See README.md.
const { Pool } = require('pg');

const channel = process.env.MQ_CHANNEL || 'thumbnails';
const lease = 30; // seconds; it is renewed while the work goes on
const pool = new Pool({ max: 2 }); // libpq's environment variables say where to
let stopping = false;

pool.on('error', (error) => console.error(error.message)); // of a connection that is idle
for (const end of ['SIGTERM', 'SIGINT']) process.on(end, () => { stopping = true; }); // the message in hand is finished

// What is to be done. What it writes commits together with mq_ack.
async function work(db, message) {
  await db.query("INSERT INTO thumbnails (image, made_by) VALUES ($1, 'node')", [message.image]);
}

async function handle(db, { id, lease: token, payload_json: message }) {
  const renewal = setInterval(() => {
    pool.query('SELECT mq_extend(ARRAY[$1::uuid], $2, make_interval(secs => $3))', [id, token, lease])
      .catch((error) => console.error(error.message));
  }, lease * 500);
  try {
    await db.query('BEGIN');
    await work(db, message);
    const { rowCount } = await db.query('SELECT mq_ack(ARRAY[$1::uuid], $2)', [id, token]);
    await db.query(rowCount > 0 ? 'COMMIT' : 'ROLLBACK');
    if (rowCount === 0) console.error(`lease lost: ${id}`); // somebody else has the message by now
  } catch (error) {
    const state = /^[0-9A-Z]{5}$/.test(error.code) ? error.code : null; // an error of the server's
    await db.query('ROLLBACK');
    await db.query('SELECT mq_nack(ARRAY[$1::uuid], $2, $3, $4)', [id, token, String(error), state]);
  } finally {
    clearInterval(renewal);
  }
}

async function consume() {
  const db = await pool.connect();
  let failure;
  try {
    while (!stopping) {
      const { rows } = await db.query(
        "SELECT id, lease, payload_json FROM mq_receive(ARRAY[$1], 1, make_interval(secs => $2), '5 s')", [channel, lease]);
      for (const row of rows) await handle(db, row);
    }
  } catch (error) {
    failure = error;
    throw error;
  } finally {
    db.release(failure);
  }
}

(async () => {
  while (!stopping) {
    await consume().catch(async (error) => { // the server restarts, say
      console.error(error.message);
      await new Promise((resolve) => { setTimeout(resolve, 1000); });
    });
  }
  await pool.end();
})();

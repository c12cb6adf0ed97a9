// Runs pg-boss for sides/pgboss.py, which writes commands to stdin and reads a line for each:
//   fill N                 adds N jobs: milliseconds
//   burn N sql|js          fetches batches of 500, handles and completes them, until N are: milliseconds
//   serve NAME             the same without end, NAME being an SQL function that is called for each job: 0
//   flood CLIENTS SECONDS  sends one job after the other from so many loops: how many
//   stop                   ends serve: how many jobs were handled
const { createRequire } = require('module')
const readline = require('readline')
const here = createRequire(process.env.BENCH_NPM + '/')
const { Pool } = here('pg')
const major = Number(here('pg-boss/package.json').version.split('.')[0])

const QUEUE = 'burn'
const BATCH = 500
const LOOPS = 2
const pool = new Pool({ max: 8 })
let boss = null
let loops = []
let stopping = false
let ran = 0

// From version 12 on it is an ES module with a named export.
async function open () {
  if (boss) return
  const PgBoss = major < 12 ? here('pg-boss') : (await import(here.resolve('pg-boss'))).PgBoss
  boss = new PgBoss({
    host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER, database: process.env.PGDATABASE,
    application_name: process.env.PGAPPNAME, max: 8, supervise: false, schedule: false
  })
  boss.on('error', error => console.error(error.message))
  await boss.start()
  await boss.createQueue(QUEUE)
}

async function fill (n) {
  await open()
  for (let from = 1; from <= n; from += 5000) {
    const jobs = []
    for (let i = from; i < from + 5000 && i <= n; i++) jobs.push({ name: QUEUE, data: { n: i } })
    await (major < 11 ? boss.insert(jobs) : boss.insert(QUEUE, jobs))
  }
}

// Handles a batch; returns how many there were.
async function batch (call) {
  const jobs = await boss.fetch(QUEUE, { batchSize: BATCH })
  if (!jobs || jobs.length === 0) return 0
  if (call) await Promise.all(jobs.map(job => pool.query({ name: call, text: `SELECT ${call}($1)`, values: [job.data] })))
  await boss.complete(QUEUE, jobs.map(job => job.id))
  return jobs.length
}

async function burn (n, kind) {
  await open()
  let handled = 0
  const loop = async () => {
    for (;;) {
      const some = await batch(kind === 'sql' ? 'noop' : null)
      handled += some
      if (some === 0 || handled >= n) return
    }
  }
  const begun = process.hrtime.bigint()
  await Promise.all(Array.from({ length: LOOPS }, loop))
  const took = Number(process.hrtime.bigint() - begun) / 1e6
  if (handled !== n) throw new Error(`handled ${handled} of ${n}`)
  return took
}

async function serve (name) {
  await open()
  ran = 0
  stopping = false
  const loop = async () => {
    while (!stopping) {
      const some = await batch(name)
      ran += some
      if (some === 0) await new Promise(resolve => setTimeout(resolve, 10))
    }
  }
  loops = Array.from({ length: LOOPS }, loop)
  return 0
}

async function stop () {
  stopping = true
  await Promise.all(loops)
  return ran
}

async function flood (clients, seconds) {
  await open()
  const end = Date.now() + seconds * 1000
  let sent = 0
  const loop = async () => {
    while (Date.now() < end) {
      await boss.send(QUEUE, { at: new Date().toISOString() })
      sent++
    }
  }
  await Promise.all(Array.from({ length: Number(clients) }, loop))
  return sent
}

const timed = async work => {
  const begun = process.hrtime.bigint()
  await work
  return Number(process.hrtime.bigint() - begun) / 1e6
}

const commands = { fill: n => timed(fill(Number(n))), burn: (n, kind) => burn(Number(n), kind), serve, flood, stop }
readline.createInterface({ input: process.stdin }).on('line', async line => {
  const [command, ...words] = line.split(' ')
  try {
    console.log(await commands[command](...words))
  } catch (error) {
    console.log('error ' + error.stack.replace(/\n/g, ' '))
  }
}).on('close', () => process.exit(0))

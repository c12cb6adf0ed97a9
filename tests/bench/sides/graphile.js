// Runs graphile-worker for sides/graphile.py, which writes commands to stdin and reads a line for each:
//   burn N sql|js    starts a runner, handles N jobs and stops it: milliseconds from the start of the runner to its end
//   serve TASK       starts a runner whose task calls that SQL function, and leaves it running: 0
//   stop             stops it: how many jobs it ran
const { createRequire } = require('module')
const readline = require('readline')
const here = createRequire(process.env.BENCH_NPM + '/')
const { run, Logger } = here('graphile-worker')
const { Pool } = here('pg')

const CONCURRENCY = 24
const quiet = new Logger(() => (level, message) => { if (level === 'error') console.error(message) })
const pgPool = new Pool({ max: CONCURRENCY + 4 })
pgPool.on('error', error => console.error(error.message))
pgPool.on('connect', client => client.on('error', error => console.error(error.message)))

let runner = null
let ran = 0

// Batches of jobs are fetched into the local queue and completed together, as its documentation advises for throughput.
function start (task, local) {
  return run({
    pgPool,
    concurrency: CONCURRENCY,
    noHandleSignals: true,
    crontab: '',
    logger: quiet,
    taskList: { burn: task },
    preset: { worker: local ? { localQueue: { size: 500 }, completeJobBatchDelay: 0, failJobBatchDelay: 0 } : {} }
  })
}

async function burn (n, kind) {
  let handled = 0
  let finish
  const finished = new Promise(resolve => { finish = resolve })
  const count = () => { if (++handled === n) finish() }
  const task = kind === 'sql'
    ? async payload => { await pgPool.query({ name: 'noop', text: 'SELECT noop($1)', values: [payload] }); count() }
    : async () => count()
  const begun = process.hrtime.bigint()
  runner = await start(task, true)
  await finished
  await runner.stop()
  const took = Number(process.hrtime.bigint() - begun) / 1e6
  if (handled !== n) throw new Error(`handled ${handled} of ${n}`)
  return took
}

async function serve (name, local) {
  ran = 0
  const text = `SELECT ${name}($1)`
  runner = await start(async payload => { await pgPool.query({ name, text, values: [payload] }); ran++ }, local === 'local')
  return 0
}

async function stop () {
  await runner.stop()
  return ran
}

const commands = { burn: (n, kind) => burn(Number(n), kind), serve, stop }
readline.createInterface({ input: process.stdin }).on('line', async line => {
  const [command, ...words] = line.split(' ')
  try {
    console.log(await commands[command](...words))
  } catch (error) {
    console.log('error ' + error.stack.replace(/\n/g, ' '))
  }
}).on('close', () => process.exit(0))

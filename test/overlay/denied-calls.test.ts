/**
 * Each public call where a seccomp filter denies one of the system calls that the library makes, and where a program
 * lacks something else. It works in another way, or the error says why not. The default run takes a share of the rows,
 * chosen at random.
 */
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { makeImage, makePrograms } from '../images/helper.js';
import { chrooted } from '../support/chroot.js';
import { generator, isLong, makeTree, mountTest, packageRoot, scratch } from '../support/index.js';
import { type Job, type Outcome, useNames } from './denied-calls.js';

const headers = readFileSync(join(packageRoot, 'native/abi.h'), 'utf8').split(/#(?:if|elif) defined/);
const isHere = (part: string): boolean =>
  !part.startsWith('(') || part.startsWith(process.arch === 'arm64' ? '(__aarch64__)' : '(__x86_64__)');
/** The system calls of the addon and the launcher, by name. */
const numbers = new Map(
  headers
    .filter(isHere)
    .flatMap((part) =>
      Array.from(part.matchAll(/^ {2}(\w+) = (\d+),/gm), ([, name = '', number]) => [name, Number(number)] as const),
    ),
);

/** Without these, Node or the small init of a program does not run. Those that return an id have no errors. */
const ofNode =
  /^(?:read|write|close|mmap|munmap|mremap|clone|exit|exit_group|rt_sigprocmask|futex|execve|fcntl|epoll_\w+|eventfd2|lseek|openat|getpid|pread64|pwrite64|ftruncate|wait4|ppoll|dup3|pipe2|prctl|kill|ioctl|socket|getdents64|umask|get\w+id)$/;

type Wanted = Omit<Partial<Job>, 'dir' | 'made'>;

let measured: Promise<number> | undefined;

/** The time of all calls together where nothing is denied: one call that takes longer hangs, on a slow machine too. */
async function measure(t: ExecutionContext): Promise<number> {
  const start = performance.now();
  await outcomes(t, { patience: 600_000 });
  return Math.max(20_000, performance.now() - start);
}

async function outcomes(t: ExecutionContext, job: Wanted, dir = scratch(t), made = dir): Promise<Outcome[]> {
  if (job.patience === undefined) measured ??= measure(t);
  const patience = job.patience ?? (await measured) ?? 0;
  makeTree(made, { 'tree/f': 'x' });
  execFileSync('tar', ['cf', join(made, 'layer.tar'), '-C', join(made, 'tree'), '.']);
  makePrograms(join(made, 'programs'), ['true']);
  await makeImage(made, [{}, join(made, 'programs')], { Cmd: ['true'], Env: ['PATH=/bin'] });
  const script = join(packageRoot, 'dist-test/test/overlay/denied-calls.js');
  const args = [script, JSON.stringify({ dir, made, denied: [], uses: useNames, ...job, patience } satisfies Job)];
  const child = spawn('unshare', ['--mount', '--propagation', 'private', process.execPath, ...args], {
    cwd: packageRoot,
    // A process that may not remove its temporary directories leaves them.
    env: { ...process.env, TMPDIR: made },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let [printed, said] = ['', ''];
  child.stdout.on('data', (data) => (printed += data));
  child.stderr.on('data', (data) => (said += data));
  await once(child, 'close');
  const lines = printed.split('\n').filter((line) => line.startsWith('{"'));
  if (lines.length < useNames.length)
    lines.push(JSON.stringify({ use: 'the process', reason: 'unexplained', message: said.slice(-300) }));
  return lines.map((line) => JSON.parse(line) as Outcome);
}

/** Counts the cells of a table, and collects those that say why not, and those that say so wrongly. */
class Cells {
  readonly table: string[] = [];
  readonly wrong: string[] = [];
  #all = 0;

  add(row: string, outcomes: readonly Outcome[], isRight: (hint: string, outcome: Outcome) => unknown): void {
    for (const outcome of outcomes) {
      const { use, reason, message, hint = '', hangs } = outcome;
      const cell = `${row}: ${use}: ${hangs ? 'hangs' : `${reason} ${message}`}`;
      this.#all++;
      if (hangs === undefined && message === undefined) continue;
      this.table.push(cell);
      if (hangs || reason === 'unexplained' || !isRight(hint, outcome)) this.wrong.push(cell);
    }
  }

  check(t: ExecutionContext, seed: number): void {
    const path = process.env['OVERLAYFS_TEST_TABLE'];
    if (path !== undefined) writeFileSync(`${path}-${t.title.split(' ')[0]}`, this.table.join('\n'));
    const say = this.table.length;
    t.log(`seed ${seed}: ${this.#all} cells, ${this.#all - say} work, ${say} say why not`);
    t.deepEqual(this.wrong, []);
  }
}

/** Chooses a share of the rows at random: all in a long run, and one where a share of the tests runs. */
function* chosen<T>(t: ExecutionContext, rows: readonly T[], cells: Cells): Generator<T> {
  const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() & 0xffffff);
  const random = generator(seed);
  const rest = [...rows];
  const few = process.env['OVERLAYFS_TEST_EVERY'] === undefined ? 3 : 1;
  for (let left = isLong ? rest.length : few; left > 0; left--) yield* rest.splice(random(rest.length), 1);
  cells.check(t, seed);
}

mountTest('a denied system call: another way, or an error that says so', async (t) => {
  const cells = new Cells();
  const names = [...numbers.keys()].filter((name) => !ofNode.test(name));
  // An old kernel lacks what some calls need.
  const lacking = new Map((await outcomes(t, {})).map(({ use, reason }) => [use, reason]));
  for (const name of chosen(t, names, cells)) {
    for (const code of ['ENOSYS', 'EPERM'] as const) {
      const job = { denied: [Number(numbers.get(name))], errno: constants.errno[code] };
      cells.add(
        `${name} ${code}`,
        await outcomes(t, job),
        // A runtime says in its own words what has failed, and gRPC has no hints.
        (hint, { use, message, reason, code }) =>
          `${hint}${message}`.includes(`${name}(2)`) ||
          code === 'ERR_IMAGE_RUNTIME' ||
          (reason && reason === lacking.get(use)),
      );
    }
  }
});

const shell = (script: string): string[] => ['sh', '-ec', `${script}; exec "$@"`, 'sh'];

const asUser = (dir: string): string[] => [
  ...shell(`chown -R 54321:54321 ${dir} 2>/dev/null || :`),
  ...['setpriv', '--reuid=54321', '--regid=54321', '--clear-groups', '--inh-caps=-all'],
];

/** Limits for prlimit(1) that some of the surroundings have besides. */
const limits: Readonly<Record<string, readonly string[]>> = {
  '64 descriptors': ['--nofile=64'],
  'no bytes in files': ['--fsize=0'],
  'a user with few processes': ['--nproc=1'],
};

/** Commands that put a program into surroundings where it lacks something. */
const surroundings: Readonly<Record<string, (dir: string, t: ExecutionContext) => readonly string[]>> = {
  ...Object.fromEntries(
    ['/proc', '/sys', '/dev'].map((path) => [`no ${path}`, () => shell(`mount -t tmpfs none ${path}`)]),
  ),
  ...Object.fromEntries(
    Array.from({ length: 41 }, (_, i) => [
      `no capability ${i}`,
      () => ['setpriv', `--bounding-set=-cap_${i}`, `--inh-caps=-cap_${i}`],
    ]),
  ),
  'a chroot': (dir, t) => chrooted(t, dir),
  'no bytes in files': () => shell("trap '' XFSZ"),
  'a read-only root': (dir) => shell(`mount --rbind ${dir} ${dir}; mount -o remount,bind,ro /`),
  'no HOME': () => ['env', '-u', 'HOME'],
  'a missing HOME': () => ['env', 'HOME=/nonexistent'],
  'a missing TMPDIR': () => ['env', 'TMPDIR=/nonexistent'],
  'a full TMPDIR': (dir) =>
    shell(`mount -t tmpfs -o nr_inodes=2 none ${dir}/tree; touch ${dir}/tree/f; export TMPDIR=${dir}/tree`),
  'a TMPDIR without programs': (dir) => shell(`mount -t tmpfs -o noexec none ${dir}/tree; export TMPDIR=${dir}/tree`),
  'umask 777': () => shell('umask 777'),
  'no standard input and error': () => ['sh', '-c', 'exec "$@" <&- 2>&-', 'sh'],
  'an odd LANG': () => ['env', 'LC_ALL=tr_TR.nothing', 'LANG='],
  'a removed working directory': (dir) => shell(`mkdir ${dir}/gone; cd ${dir}/gone; rmdir ${dir}/gone`),
  'a user without a name': asUser,
  'a user with few processes': asUser,
  '64 descriptors': () => ['env'],
};

mountTest('hostile surroundings: another way, or an error with a remedy', async (t) => {
  const cells = new Cells();
  for (const [name, command] of chosen(t, Object.entries(surroundings), cells)) {
    const dir = scratch(t);
    const found = await outcomes(t, { command: command(dir, t), limits: limits[name] ?? [] }, dir);
    cells.add(name, found, (hint) => hint !== '');
  }
});

mountTest('paths near the limit of 4,095 bytes, in directories with names of 255', async (t) => {
  const cells = new Cells();
  for (const length of [3900, 4000, 4040, 4070]) {
    const top = scratch(t);
    const rest = length - top.length;
    const names = Array.from({ length: Math.ceil(rest / 256) }, (_, i) =>
      'n'.repeat(Math.min(255, rest - 256 * i - 1)),
    );
    const dir = join(top, ...names);
    cells.add(
      `${length} bytes`,
      await outcomes(t, {}, dir, top),
      (hint, { code = '' }) => hint !== '' || /^ERR_/.test(code),
    );
  }
  cells.check(t, 0);
});

/**
 * Each system call of each operation fails in turn, by strace(1). The operation works all the same, or fails with a clear
 * error, leaves nothing behind, and succeeds when it is tried again. By default some of the calls, as the seed chooses
 * them; OVERLAYFS_TEST_SCALE=1 tries all.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import type { ExecutionContext } from 'ava';
import { generator, isLong, mountTest, packageRoot, scratch } from '../support/index.js';
import { operations } from './operations.js';

const hasStrace = spawnSync('strace', ['-V']).status === 0;
const seed = Number(process.env['OVERLAYFS_TEST_SEED'] ?? Date.now() % 1_000_000);
/** The faults of an operation that a short run tries. */
const SHORT = 6;
const errnos = ['ENOSPC', 'EIO', 'ENOMEM', 'EINTR'] as const;

/** The calls that touch files and mounts. read(2), write(2) and mmap(2) are left out: Node and V8 live by them. */
const calls = [
  ...['openat2', 'open_tree', 'fsopen', 'fsconfig', 'fsmount', 'fspick', 'move_mount', 'mount', 'umount2'],
  ...['mount_setattr', 'statmount', 'listmount', 'setns', 'unshare', 'clone3', 'pivot_root', 'fchdir'],
  ...['mkdir', 'mkdirat', 'mknodat', 'rename', 'renameat2', 'link', 'linkat', 'symlinkat', 'unlink', 'unlinkat'],
  ...['rmdir', 'openat', 'pwrite64', 'pwritev', 'writev', 'pread64', 'ftruncate', 'fallocate', 'copy_file_range'],
  ...['fchmod', 'fchmodat', 'fchown', 'fchownat', 'utimensat', 'fsetxattr', 'setxattr', 'lsetxattr', 'setxattrat'],
  ...['removexattr', 'fremovexattr', 'lremovexattr', 'fgetxattr', 'getxattr', 'lgetxattr', 'flistxattr', 'listxattr'],
  ...['llistxattr', 'listxattrat', 'getxattrat', 'statx', 'newfstatat', 'fstat', 'statfs', 'fstatfs', 'getdents64'],
  ...['fsync', 'fdatasync', 'syncfs', 'readlinkat', 'faccessat2', 'inotify_add_watch', 'ioctl', 'fcntl', 'flock'],
];
interface Answer {
  readonly outcome: { readonly failed: boolean; readonly error?: Record<string, unknown> };
  readonly wrong?: Record<string, unknown>;
}

/** The process that performs an operation, and is told each step. */
class Subject {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;

  constructor(base: string, operation: string) {
    const program = join(packageRoot, 'dist-test/test/faults/subject.js');
    const args = ['--enable-source-maps', program, base, operation];
    this.#child = spawn(process.execPath, args, {
      stdio: ['pipe', 'pipe', 'inherit'],
      // A clean-up finds nothing of other programs there.
      env: { ...process.env, NODE_V8_COVERAGE: undefined, TMPDIR: dirname(base) },
    });
    this.#reader = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  async step(name: string): Promise<Answer> {
    this.#child.stdin?.write(`${name}\n`);
    // Its lines end with the process.
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 60_000);
    const { value, done } = await this.#lines.next();
    clearTimeout(timer);
    if (done) throw new Error(`the process ended, or was ended after a minute, at '${name}': ${this.#child.exitCode}`);
    return JSON.parse(value);
  }

  async end(): Promise<void> {
    this.#child.stdin?.end();
    if (this.#child.exitCode === null && this.#child.signalCode === null) await once(this.#child, 'exit');
  }
}

/** The tracers of the threads of a process: 0 for one that has none. */
function tracersOf(pid: number): Set<string | undefined> {
  const tracers = new Set<string | undefined>();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      tracers.add(/^TracerPid:\t(\d+)/m.exec(readFileSync(`/proc/${pid}/task/${thread}/status`, 'latin1'))?.[1]);
    } catch {} // it has ended meanwhile
  }
  return tracers;
}

/** Performs the operation while strace(1) watches each thread of it. */
async function traced(subject: Subject, log: string, args: readonly string[]): Promise<Answer> {
  const tracer = spawn('strace', ['-f', '-qq', '-o', log, ...args, '-p', String(subject.pid)], { stdio: 'inherit' });
  const ended = once(tracer, 'exit');
  const isAttached = (): boolean => {
    if (tracer.exitCode !== null) throw new Error(`strace ended with ${tracer.exitCode}`);
    const tracers = tracersOf(subject.pid);
    return tracers.size === 1 && tracers.has(String(tracer.pid));
  };
  while (!isAttached()) await sleep(2);
  try {
    return await subject.step('perform');
  } finally {
    tracer.kill('SIGINT');
    await ended;
  }
}

const lines = (log: string): string[] => readFileSync(log, 'latin1').split('\n');

/**
 * The release of a lock does not fail on a local file system, so SQLite does not try it again: the lock would stay, and keep
 * out everybody else until the process ends.
 */
const isUnlock = (line: string): boolean => line.includes('l_type=F_UNLCK');

/** The n-th of each call, up to as many as the busiest thread makes in an undisturbed run, without releases of locks. */
async function callsOf(subject: Subject, dir: string): Promise<[call: string, when: number][]> {
  const log = join(dir, 'calls');
  await subject.step('prepare');
  await traced(subject, log, ['-e', `trace=${calls.map((call) => `?${call}`).join(',')}`]);
  await subject.step('check');
  const made = new Map<string, string[]>();
  for (const line of lines(log)) {
    const [, thread, call] = /^(\d+) +(?!syscall_)(\w+)\(/.exec(line) ?? [];
    if (call === undefined) continue;
    const key = `${thread} ${call}`;
    made.set(key, [...(made.get(key) ?? []), line]);
  }
  const most = new Map<string, string[]>();
  for (const [key, of] of made) {
    const call = key.split(' ')[1] as string;
    if (of.length > (most.get(call)?.length ?? 0)) most.set(call, of);
  }
  return [...most].flatMap(([call, of]) =>
    of.flatMap((line, i) => (isUnlock(line) ? [] : [[call, i + 1] as [string, number]])),
  );
}

/** Returns what is wrong with the answer to a fault, if anything is. */
function faultOf({ outcome, wrong }: Answer): string | undefined {
  if (wrong !== undefined) return `afterwards: ${wrong['stack'] ?? wrong['message']}`;
  const { failed, error = {} } = outcome;
  if (!failed || error['isOfProgram'] === true) return undefined;
  if (error['reason'] === 'unexplained') return `unexplained: ${error['message']}`;
  if (typeof error['code'] !== 'string') return `no code: ${error['stack']}`;
  return undefined;
}

async function injectAll(t: ExecutionContext, operation: string): Promise<void> {
  t.timeout(3_600_000);
  const dir = scratch(t);
  const random = generator(seed);
  mkdirSync(join(dir, 'tries'));
  let subject = new Subject(join(dir, 'tries'), operation);
  t.teardown(() => subject.end());
  // The modules that it needs are loaded, and the kernel is probed, before any fault.
  const warm = async (): Promise<void> => {
    for (const step of ['prepare', 'perform', 'check']) {
      const { wrong, outcome } = await subject.step(step);
      t.is(wrong, undefined, `${operation}, undisturbed: ${step}: ${wrong?.['stack']}`);
      t.false(outcome.failed, `${operation}, undisturbed: ${outcome.error?.['stack']}`);
    }
  };
  await warm();
  if (!t.passed) return;
  const faults = (await callsOf(subject, dir)).flatMap(([call, when]) =>
    errnos.map((errno) => [call, errno, when] as const),
  );
  const chosen = isLong ? faults : Array.from({ length: SHORT }, () => faults[random(faults.length)] as never);
  const counts = { injected: 0, failed: 0 };
  const bad: string[] = [];
  for (const [call, errno, when] of chosen) {
    const title = `${operation}: ${call} ${errno} when=${when} (seed ${seed})`;
    const log = join(dir, 'log');
    let answer: Answer;
    let injected: string[] = [];
    try {
      await subject.step('prepare');
      const trace = ['-e', `trace=${call}`, '-e', `inject=${call}:error=${errno}:when=${when}`];
      const performed = await traced(subject, log, trace).finally(() => {
        injected = lines(log).filter((line) => line.includes('(INJECTED)'));
      });
      if (injected.length > 0 && performed.outcome.failed) counts.failed++;
      // A fault of fstat(2) in a function of node:fs leaks Node's own descriptor.
      const isOfNode = injected.some((line) => line.startsWith(`${subject.pid} `) && /(statx|fstat)\(\d+,/.test(line));
      if (isOfNode) await subject.step('forgive');
      answer = await subject.step('check');
    } catch (error) {
      answer = { outcome: { failed: true }, wrong: { message: String(error) } };
    }
    // The order of calls differs from run to run.
    const isRelease = injected.some(isUnlock);
    if (injected.length > 0 && !isRelease) counts.injected++;
    const fault = isRelease ? undefined : faultOf(answer);
    if (fault !== undefined) {
      bad.push(`${title}: ${fault}`);
      if (isLong) t.log(bad.at(-1));
    }
    if (fault === undefined && answer.wrong === undefined) continue;
    await subject.end();
    subject = new Subject(join(dir, 'tries'), operation);
    await warm();
  }
  t.log(`${faults.length} faults possible, ${JSON.stringify(counts)}, ${bad.length} bad, seed ${seed}`);
  t.deepEqual(bad, []);
  t.true(counts.injected > 0);
}

const named = process.env['OVERLAYFS_TEST_FAULTS']?.split(',');
const { notSynced: _, ...each } = operations;

for (const operation of named ?? Object.keys(each)) {
  if (hasStrace) mountTest(`faults in ${operation} (needs strace)`, (t) => injectAll(t, operation));
}

/** The operations that write what has to be on the disk. */
const writers = [
  ...['merge by copy', 'merge by move', 'squash to plain', 'squash', 'apply'],
  ...['prepare', 'commit', 'unpack', 'commitImage', 'createImage'],
];

for (const operation of hasStrace ? writers : []) {
  mountTest(`a directory or file that cannot be synced is named: ${operation} (needs strace)`, async (t) => {
    t.timeout(600_000);
    const dir = scratch(t);
    const tries = join(dir, 'tries');
    mkdirSync(tries);
    const subject = new Subject(tries, operation);
    t.teardown(() => subject.end());
    for (const step of ['prepare', 'perform', 'check']) await subject.step(step);
    const log = join(dir, 'log');
    const found = new Set<string>();
    for (const call of ['fsync', 'syncfs']) {
      for (let when = 1, paths = ['']; paths.length > 0; when++) {
        await subject.step('prepare');
        await traced(subject, log, ['-y', '-e', `trace=${call}`, '-e', `inject=${call}:error=EIO:when=${when}`]);
        const { outcome, wrong } = await subject.step('check');
        t.is(wrong, undefined, String(wrong?.['stack']));
        paths = lines(log).flatMap((line) => /<(.*)>.*\(INJECTED\)/.exec(line)?.[1] ?? []);
        // A store writes the pages of its log again, and its file after that: two threads may meet a fault each.
        const own = paths.filter((path) => !/\/metadata\.db(-wal)?$/.test(path));
        const shown = own.map((path) => path.replace(/\/(\.overlayfs-(merge\/new|\w+)|try-\w+)$/, ''));
        const { code, message = '' } = (outcome.error ?? {}) as { code?: string; message?: string };
        if (own.length > 0) t.deepEqual([code, shown.some((path) => message.includes(path))], ['EIO', true], message);
        for (const path of own)
          found.add(path.slice(tries.length + '/try-xxxxxx/'.length).replace(/[0-9a-f]{12}|\b\d+\b/, 'N'));
      }
    }
    t.log([...found].sort());
    t.true(found.size > 0);
  });
}

if (hasStrace) {
  mountTest('a store whose disk fails each fsync says that the change is made (needs strace)', async (t) => {
    const dir = scratch(t);
    const subject = new Subject(dir, 'notSynced');
    t.teardown(() => subject.end());
    await subject.step('prepare');
    const { outcome } = await traced(subject, join(dir, 'log'), ['-e', 'inject=fsync,fdatasync:error=EIO']);
    t.is(outcome.error?.['reason'], 'not-synced', String(outcome.error?.['stack']));
    t.regex(
      String(outcome.error?.['message']),
      /may not be on the disk: fsync\(2\), with EIO, failed\. .*It need not be/,
    );
    const { wrong } = await subject.step('check');
    t.is(wrong, undefined, String(wrong?.['stack']));
  });
}

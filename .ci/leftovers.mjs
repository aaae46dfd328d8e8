// Finds what a step has left on the machine: mounts, processes, loop devices, cgroups, directories, files in the tree.
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** In the environment of each process of a run, so that its processes are told from others. */
export const MARK = 'OVERLAYFS_CI_RUN';

/** Things that end by themselves soon, such as a process that was killed, are not left. */
const PATIENCE_SECONDS = 10;

/** Directories in which programs put temporary ones. Names with a dot in front are caches. */
const PLACES = ['/tmp', '/var/tmp', '/dev/shm'];

const read = (path) => {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return '';
  }
};

const list = (path) => {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
};

const mounts = () =>
  read('/proc/self/mountinfo')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => {
      const [id, , , , target] = line.split(' ');
      return [`mount ${id}`, `the mount at ${target}`];
    });

/** The fields of /proc/PID/stat behind the name of the program: state, parent, …, start time. */
function statOf(pid) {
  const text = read(`/proc/${pid}/stat`);
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0], parent: Number(fields[1]), started: fields[19] };
}

const markOf = (pid) =>
  read(`/proc/${pid}/environ`)
    .split('\0')
    .find((text) => text.startsWith(`${MARK}=`))
    ?.slice(MARK.length + 1);

const pids = () => list('/proc').filter((name) => /^\d+$/.test(name));

/**
 * The processes of this run. Some programs get an empty environment, so that those that started since and have lost
 * their parent count too.
 */
const processes = () =>
  pids().flatMap((pid) => {
    const { state, parent, started } = statOf(pid);
    if (state === undefined || state === 'Z' || Number(pid) === process.pid) return [];
    const isOrphan = parent === 1 && Number(started) > Number(statOf(process.pid).started);
    const isOurs = markOf(pid) === process.env[MARK] || isOrphan;
    const command = read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim() || read(`/proc/${pid}/comm`).trim();
    return isOurs ? [[`process ${pid} ${started}`, `process ${pid} (${command.slice(0, 120)})`]] : [];
  });

const loopDevices = () =>
  list('/sys/block').flatMap((name) => {
    const file = read(`/sys/block/${name}/loop/backing_file`).trim();
    return file === '' ? [] : [[`loop ${name} ${file}`, `the loop device ${name} of ${file}`]];
  });

/** All cgroups, of which a hybrid machine has several trees. `default` is containerd's own, which it keeps. */
function cgroups(dir = '/sys/fs/cgroup', level = 0) {
  if (level > 8) return [];
  try {
    return readdirSync(dir, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && entry.name !== 'default')
      .flatMap(({ name }) => {
        const path = `${dir}/${name}`;
        return [[`cgroup ${path}`, `the cgroup ${path}`], ...cgroups(path, level + 1)];
      });
  } catch {
    return [];
  }
}

const temporary = () =>
  PLACES.flatMap((dir) =>
    list(dir)
      .filter((name) => !name.startsWith('.'))
      .map((name) => [`in ${dir}/${name}`, `${dir}/${name}`]),
  );

const inTree = () =>
  execFileSync('git', ['status', '--porcelain', '-z'], { encoding: 'latin1' })
    .split('\0')
    .filter((line) => line !== '')
    .map((line) => [`tree ${line}`, `${line.slice(3)} in the tree`]);

/** Returns the things that are there now, each with a key and in words. */
export const takeStock = () =>
  new Map([mounts, processes, loopDevices, cgroups, temporary, inTree].flatMap((look) => look()));

/** Returns in words what is there now and was not before. */
export async function findLeft(before) {
  const end = Date.now() + PATIENCE_SECONDS * 1000;
  for (;;) {
    const left = [...takeStock()].filter(([key]) => !before.has(key)).map(([, words]) => words);
    if (left.length === 0 || Date.now() > end) return left;
    await sleep(200);
  }
}

/** A mark for this run: its process, and when that started. */
export const newMark = () => `${process.pid}-${statOf(process.pid).started}`;

/** Ends the processes of earlier runs that were killed. Returns their number. */
export async function endStale() {
  const isDead = (mark) => {
    const [pid, started] = mark.split('-');
    return statOf(pid).started !== started;
  };
  const find = () =>
    pids().filter((pid) => {
      const mark = markOf(pid);
      return mark !== undefined && mark !== process.env[MARK] && isDead(mark) && statOf(pid).state !== 'Z';
    });
  const stale = find();
  for (let tries = 0; tries < 50; tries++) {
    const found = find();
    if (found.length === 0) break;
    for (const pid of found) {
      try {
        process.kill(Number(pid), 'SIGKILL');
      } catch {} // it has ended meanwhile
    }
    await sleep(200);
  }
  return stale.length;
}

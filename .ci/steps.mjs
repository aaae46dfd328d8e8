// The steps of .ci/run in their order: cheap ones that are often wrong come first. One step runs at a time, because each
// uses both processors of a small machine.
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';

const git = (...args) => execFileSync('git', args, { encoding: 'utf8' }).trim();

const allTests = () =>
  readdirSync('dist-test/test', { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.js'))
    .map((file) => `dist-test/test/${file}`)
    .sort();

const ava = (...args) => ['node_modules/.bin/ava', '--tap', ...args];

/** A pattern that a title matches. In ava's patterns ! at the beginning and \\ have meanings of their own. */
const patternOf = (title) => title.replace(/^!|\\/g, '*');

/** A step of tests. `again` is the command for one of them, from its file. */
const tests = (title, files, command, env = {}) => ({
  title,
  files,
  command,
  env,
  again: ({ file, name }) => ava(file, `--match=${patternOf(name)}`),
});

const check = (title, ...command) => ({ title, command });

/** Returns the part of a list that the number of this commit chooses: another part for each commit. */
function rotate(list, count, seed) {
  if (list.length <= count) return list;
  const start = seed % list.length;
  return [...list.slice(start), ...list.slice(0, start)].slice(0, count);
}

/** The parts of lib/, native/ and test/ that have changed since the last commit of the day before. */
function changedFiles() {
  const [head, date] = git('log', '-1', '--format=%H %ct').split(' ');
  const base = git('rev-list', '-1', `--before=${Number(date) - 86_400}`, head);
  return base === '' ? [] : git('diff', '--name-only', base, head).split('\n');
}

/** The files of tests that the present change can reach first: those that changed, and those of rooms that changed. */
function reached(files) {
  const rooms = new Set();
  for (const file of changedFiles()) {
    const [, room] = /^(?:lib|test)\/([\w-]+)\//.exec(file) ?? [];
    if (room !== undefined) rooms.add(room);
    if (file.startsWith('native/')) rooms.add('kernel');
  }
  return files.filter((file) => rooms.has(file.split('/')[2]));
}

/** How many files of reached tests run whole under the sanitizers. */
const MOST_WHOLE = 3;

/** How many of them run on older kernels. Emulation makes the start of each file take some 10 seconds. */
const MOST_ON_KERNELS = 8;

/** The calls that all else stands on run on older kernels each time. */
const ALWAYS_ON_KERNELS = ['overlay/mount', 'overlay/features', 'mounts/unmount', 'layers/whiteout'];

/** Returns the steps, and lines that say what was chosen. `packages` is a directory for Debian's packages. */
export function makeSteps({ isLong, packages }) {
  const commit = git('rev-parse', 'HEAD');
  const seed = Number.parseInt(commit.slice(0, 8), 16);
  const files = allTests();
  const one = (name) => `dist-test/test/${name}.test.js`;
  const inRoom = (room) => files.filter((file) => file.startsWith(`dist-test/test/${room}/`));
  const whole = rotate(reached(files), MOST_WHOLE, seed);
  const every = isLong ? 1 : 8;
  const kernels = isLong ? '5.10,6.1,6.12,newest' : '6.1,6.12';
  const onKernels = [...ALWAYS_ON_KERNELS.map(one), ...rotate(reached(files), MOST_ON_KERNELS, seed)];
  const share = isLong ? [] : ['--share', '20', '--part', '4', '--seed', String(seed), ...onKernels];

  const redis = ['dist-test/examples/redis.js', '--packages', packages];

  const steps = [
    check('lint', 'npm', 'run', 'lint'),
    check('package', 'npm', 'run', 'check:package'),
    // Without the scripts before it: npm ci has compiled all.
    tests('npm test', files, [
      ...(isLong ? ['node_modules/.bin/c8'] : []),
      'npm',
      'test',
      '--ignore-scripts',
      '--',
      '--tap',
    ]),
    tests('package, bundled and typed', inRoom('package'), ava(...inRoom('package')), { OVERLAYFS_TEST_SCALE: '1' }),
    tests('containerd', [one('containerd/real')], ava(one('containerd/real')), { OVERLAYFS_TEST_SCALE: '1' }),
    tests('power cuts', [one('power-cuts/replay')], ava(one('power-cuts/replay')), { OVERLAYFS_TEST_CUTS: '24' }),
    check('demo', 'npm', 'run', 'demo'),
    check('demo as a plain user', '.ci/as-nobody', 'dist-test/examples/walkthrough.js'),
    check('redis by runc', 'node', ...redis, '--runtime', 'runc'),
    check('redis without a runtime', 'node', ...redis, '--runtime', 'none'),
    check('redis as a plain user', '.ci/as-nobody', ...redis),
    check('bench runs', 'npm', 'run', 'bench', '--', '--once'),
    check('arm64 binaries', 'npm', 'run', 'build:prebuilds', '--', 'arm64'),
    check('arm64', 'test/arm64/run'),
    {
      title: 'sanitizers',
      files,
      command: [
        ...['node', 'test/sanitizers/run.mjs', '--tap', '--seconds', isLong ? '30' : '10'],
        ...['--every', String(every), '--seed', String(seed), ...whole],
      ],
      again: ({ file, name }) => [
        'node',
        'test/sanitizers/run.mjs',
        '--suite',
        '--tap',
        '--only',
        file,
        '--match',
        patternOf(name),
      ],
    },
    check('fuzzing', 'npm', 'run', 'test:fuzz', '--', '--seconds', isLong ? '600' : '30', '--seed', String(seed)),
    {
      title: 'older kernels',
      files,
      command: ['node', 'dist-test/test/kernels/run.js', '--tap', '--kernels', kernels, ...share],
      again: ({ file, name, place }) => [
        ...['node', 'dist-test/test/kernels/run.js', '--tap', '--kernels', place, '--match', patternOf(name), file],
      ],
    },
  ];
  const chosen = isLong
    ? ['everything']
    : [
        `sanitizers: the first test of each file, and of the others every ${every}th, by the commit (${seed})`,
        `sanitizers: each test of ${whole.length === 0 ? 'no file' : whole.join(', ')}`,
        `older kernels: every 4th file and ${onKernels.join(', ')}`,
        `older kernels: of each file on one of ${kernels} the first test, and of the others every 20th`,
      ];
  return { steps, chosen };
}

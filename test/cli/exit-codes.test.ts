/** The exit codes: a table of all commands. Imports internals: which commands there are, and which can answer no. */
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { mountOverlay } from 'overlayfs';
import { createLayout } from 'overlayfs/images';
import { baseline } from 'overlayfs/layers';
import { commands } from '#lib/cli/commands.js';
import { makeTree, mountTest, scratch } from '../support/index.js';
import { overlayfs, type Ran, run } from './run.js';

/** The arguments to run, by the exit code. */
const rows: Readonly<Record<string, Readonly<Record<number, readonly string[]>>>> = {
  mount: {
    0: ['--lowerdir a --lowerdir b new'],
    2: ['', '--lowerdir a --lowerdir none new', '--lowerdir a --wrong new'],
  },
  watch: { 0: ['--help'], 2: ['a b', '--wrong', '--all --type x'] },
  rm: { 0: ['b/gone-dir'], 2: ['', 'none'] },
  umount: { 0: ['new', '--recursive a'], 2: ['', 'new', 'none', '--timeout 5 new'] },
  ls: { 0: ['view', ''], 1: ['a', '--type none'], 2: ['a b', 'none', '--wrong'] },
  holders: { 0: ['held'], 1: ['view'], 2: ['', 'none', 'view view'] },
  explain: {
    0: ['--lowerdir a --lowerdir b new'],
    1: ['--lowerdir a --lowerdir none new'],
    2: ['', '--lowerdir a --upperdir b new', '--lowerdir a --lowerdir b --index on new'],
  },
  run: {
    0: ['--lowerdir a --temporary true'],
    9: ['--lowerdir a --temporary sh -c exit\\ 9'],
    125: ['', 'true', '--wrong true', '--lowerdir none --temporary true'],
    126: ['--lowerdir a --temporary ./file'],
    127: ['--lowerdir a --temporary no-such-program'],
    143: ['--lowerdir a --temporary sh -c kill\\ $$'],
  },
  unshare: {
    0: ['true'],
    125: ['--wrong'],
    126: ['./file'],
    127: ['no-such-program'],
    143: ['sh -c kill\\ $$'],
  },
  changes: { 0: ['held', '--lowerdir a b'], 2: ['', 'none', 'a b', 'view'] },
  lookup: { 0: ['view file', '--lowerdir a file'], 1: ['view none', '--lowerdir a none'], 2: ['', 'a file', 'view'] },
  check: { 0: ['a'], 1: ['bad'], 2: ['', 'none', 'a b'] },
  merge: {
    0: ['--dry-run upper into', 'upper into'],
    1: ['--since moment other into', '--dry-run --since moment other into'],
    2: ['', 'a', 'none into', '--conflict maybe upper into'],
  },
  squash: { 0: ['a b squashed', '--plain a b flat'], 2: ['', 'a', 'none made', 'a b squashed'] },
  pack: { 0: ['a a.tar', '--dry-run a'], 2: ['', 'none n.tar', 'a none/a.tar', '--level many a m.tar'] },
  apply: { 0: ['a.tar applied', '--dry-run a.tar'], 2: ['', 'a.tar', 'none applied', 'file applied'] },
  whiteout: { 0: ['b/gone'], 2: ['', 'b/gone', '-0 b/other'] },
  'snapshot prepare': {
    0: ['--root s one'],
    2: ['--root s one', '--root s --label x two', '--root s', '--root file/s x'],
  },
  'snapshot view': { 0: ['--root s seen'], 2: ['--root s seen none'] },
  'snapshot mounts': { 0: ['--root s one'], 2: ['--root s none'] },
  'snapshot commit': { 0: ['--root s base one'], 2: ['--root s base none', '--root s base', '--root none base one'] },
  'snapshot ls': { 0: ['--root s'], 1: ['--root s kind==active'], 2: ['--root none', '--root s wrong('] },
  'snapshot tree': { 0: ['--root s'], 2: ['--root none', '--root s base'] },
  'snapshot stat': { 0: ['--root s base'], 2: ['--root s', '--root s none'] },
  'snapshot usage': { 0: ['--root s base'], 2: ['--root s none'] },
  'snapshot rm': { 0: ['--root s base seen'], 2: ['--root s', '--root s base'] },
  'snapshot cleanup': { 0: ['--root s'], 2: ['--root none', '--root s base'] },
  serve: { 1: ['--check --root s --address no.sock'], 2: ['--root s', '--wrong', '--root file/s --address no.sock'] },
  'image run': { 125: ['', './none:tag true', '--wrong ./none'], 0: ['--help'] },
  'image unpack': { 0: ['--help'], 2: ['', '--root s ./none:tag'] },
  'image ls': { 0: ['--help'], 1: ['layout'], 2: ['', 'none', 'a'] },
  'image commit': { 0: ['--help'], 2: ['./layout key tag', './layout key'] },
  features: { 0: ['', '--json'], 2: ['a'] },
  completion: { 0: ['bash', 'zsh', 'fish'], 2: ['', 'csh'] },
};

/** Splits as a shell does, for a backslash before a blank. */
const words = (line: string): string[] => (line.match(/(?:\\.|\S)+/g) ?? []).map((word) => word.replaceAll('\\ ', ' '));

mountTest('exit codes: 0 yes or done, 1 no, 2 failed or wrong usage; 125 and more where a program runs', async (t) => {
  t.deepEqual(Object.keys(rows).sort(), Object.keys(commands).sort(), 'each command has its rows');
  const cwd = scratch(t, 'disk');
  makeTree(cwd, {
    'a/file': '',
    'b/other': '',
    'b/gone-dir/inner': '',
    'bad/.wh.x': '',
    'upper/new': '',
    'other/seen': 'ours',
    'new/': '',
  });
  makeTree(cwd, { 'into/seen': '', file: 'text', 'view/': '', 'held/': '' });
  const at = (name: string) => join(cwd, name);
  // A process for those that start programs; the others run in this one, in a fraction of the time.
  const call = async (name: string, line: string): Promise<Ran> => {
    const args = [...name.split(' '), ...words(line)];
    return commands[name]?.runsProgram ? run(args, { cwd }) : overlayfs(...args);
  };
  await using _view = await mountOverlay({ lowerdir: [at('a'), at('b')], target: at('view') });
  await using _held = await mountOverlay({
    lowerdir: at('a'),
    upperdir: at('changed'),
    create: true,
    target: at('held'),
  });
  await createLayout(at('layout'));
  const wrong: string[] = [];
  const holder = openSync(join(at('held'), 'file'), 'r');
  process.chdir(cwd);
  try {
    makeTree(cwd, { moment: JSON.stringify(await baseline(`${cwd}/into`)) });
    makeTree(cwd, { 'into/seen': 'theirs' });
    for (const [name, byCode] of Object.entries(rows)) {
      const command = commands[name] as (typeof commands)[string];
      t.is(1 in byCode, command.no !== undefined, `${name}: its help has the code 1 if it can answer no`);
      for (const [expected, lines] of Object.entries(byCode)) {
        for (const line of lines) {
          const { code: found, stderr } = await call(name, line);
          const isFailure = expected === '2' || /^12[567]$/.test(expected);
          const isRight = String(found) === expected && (isFailure ? /^overlayfs: /.test(stderr) : true);
          if (!isRight) wrong.push(`${name} ${line}: ${found}, not ${expected}: ${stderr}`);
        }
      }
    }
  } finally {
    process.chdir('/');
    closeSync(holder);
  }
  t.deepEqual(wrong, []);
  t.is(run(['--help'], { cwd }).code, 0);
  t.is(run([], { cwd }).code, 2);
  t.is(run(['none'], { cwd }).code, 2);
});

/** Messages about a wrong command line, and help. Imports internals: a process for each phrase would take minutes. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { flagsOfCommand } from '#lib/cli/command.js';
import { argumentsOf } from '#lib/cli/command-line.js';
import { commands } from '#lib/cli/commands.js';
import { spellingOf } from '#lib/cli/spelling.js';
import { reasons } from '#lib/reasons.js';
import { argument, either, member, option, render, type Text, text } from '#lib/text.js';
import { packageRoot } from '../support/index.js';
import { json, overlayfs, run } from './run.js';

const layers = ['--lowerdir', '/l', '--upperdir', '/u', '--workdir', '/w'];

test('--help, --version, and no command at all', (t) => {
  const help = run(['--help']);
  t.is(help.code, 0);
  for (const name of ['mount', 'umount', 'run', 'holders', 'whiteout', 'features'])
    t.regex(help.stdout, new RegExp(`^  ${name} `, 'm'));
  t.deepEqual(run(['-h']), help);
  t.deepEqual(run([]), { code: 2, stdout: '', stderr: help.stdout });
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
  t.deepEqual(run(['--version']), { code: 0, stdout: `overlayfs ${version}\n`, stderr: '' });
});

test.serial('--help of each command has usage, flags, exit codes and examples', async (t) => {
  for (const [name, flag] of [
    ['mount', '--redirect-dir on|off|follow|nofollow'],
    ['umount', '--recursive'],
    ['whiteout', '-0, --null'],
    ['features', '--json'],
    ['run', '--at DIR'],
  ] as const) {
    const { code, stdout, stderr } = await overlayfs(name, '--help');
    t.is(code, 0);
    t.is(stderr, '');
    t.true(stdout.startsWith(`Usage: overlayfs ${name} `));
    t.true(stdout.includes(flag), flag);
    t.regex(stdout, name === 'run' ? /^Exit codes:\n {2}125 .*\n {2}126 /m : /^Exit codes:\n {2}0 .*\n {2}2 /m);
    t.regex(stdout, new RegExp(`^Examples:\n(?:  .*overlayfs ${name}.*\n)+`, 'm'));
  }
});

test.serial('the examples in the help are right: those of mount, as dry runs', async (t) => {
  const { stdout } = await overlayfs('mount', '--help');
  const examples = stdout.slice(stdout.indexOf('Examples:')).match(/(?<=overlayfs ).*/g) ?? [];
  t.true(examples.length > 3);
  for (const example of examples) {
    const args = example.split(' ').filter((word) => word !== '--dry-run');
    t.is((await overlayfs(...args, '--dry-run')).code, 0, example);
  }
});

const wrong: Readonly<Record<string, readonly [args: string[], says: RegExp]>> = {
  'an unknown command': [['mont'], /unknown command 'mont'\n {2}hint: Did you mean mount\?/],
  'a flag for a command': [['--json'], /unknown option '--json'/],
  'an unknown flag': [
    ['mount', '--upper', '/u', '/m'],
    /unknown option '--upper'\n {2}hint: Did you mean --upperdir\?/,
  ],
  "the kernel's spelling": [['mount', '--redirect_dir=on', '/m'], /Did you mean --redirect-dir\?/],
  "the library's spelling": [['mount', '--redirectDir', 'on', '/m'], /Did you mean --redirect-dir\?/],
  'an unknown short flag': [['umount', '-x', '/m'], /unknown option '-x'/],
  'a wrong word': [['mount', '--xino', 'yes', '/m'], /--xino cannot be 'yes'\n {2}hint: One of: on, off, auto\./],
  'a word that is nearly right': [['mount', '--atime', 'no-atime', '/m'], /Did you mean noatime\?/],
  'a flag with a value too many': [
    ['mount', '--index=on', '/m'],
    /unknown option '--index=on'\n {2}hint: Did you mean --index\?/,
  ],
  'a flag without a value': [['mount', '/m', '--lowerdir'], /option '--lowerdir <DIR>' argument missing/],
  'a flag whose value is a flag': [
    ['mount', '--upperdir', '--workdir', '/w'],
    /--upperdir needs a value, but an option follows/,
  ],
  'a flag twice': [['mount', ...layers, '--upperdir', '/v', '/m'], /--upperdir is given twice/],
  'a flag and its opposite': [['mount', ...layers, '--index', '--no-index', '/m'], /--no-index is given twice/],
  'no opposite where it would say nothing': [['mount', ...layers, '--no-volatile', '/m'], /unknown option/],
  'an empty path': [['mount', '--lowerdir', '', '/m'], /--lowerdir must not be empty/],
  'a program without a place': [
    ['run', ...layers, '--lowerdir', '/b', 'true'],
    /name where .* sees the overlay: --at DIR/,
  ],
  'no program': [['run', ...layers, '--at', '/m'], /name the program to run\n {2}hint: It comes after the options/],
  'an empty target': [['umount', ''], /a path must not be empty/],
  'no target': [['mount', ...layers], /missing operand 'TARGET'\n {2}hint: Usage: overlayfs mount --lowerdir/],
  'two targets': [['mount', ...layers, '/m', '/n'], /too many arguments\. Expected 1 argument but got 2\./],
  'no lower': [['mount', '/m'], /name the lower layers/],
  'an upper without work': [
    ['mount', '--lowerdir', '/l', '--upperdir', '/u', '/m'],
    /--upperdir needs --workdir,[\s\S]*pass --create/,
  ],
  'a work alone': [
    ['mount', ...layers.slice(0, 2), '--lowerdir', '/k', '--workdir', '/w', '/m'],
    /hint: Leave it out, or add --upperdir\./,
  ],
  'a long path': [
    ['mount', '--lowerdir', '/k', '--lowerdir', 'x'.repeat(5000), '/m'],
    /^overlayfs: --lowerdir must be a path/,
  ],
  'a conflict': [
    ['mount', ...layers, '--nfs-export', '--no-index', '/m'],
    /--nfs-export and --no-index exclude each other: .*\n {2}reason: conflicting-options\n {2}hint: Leave --index out/,
  ],
  'a name that cannot fall away': [
    ['mount', ...layers, '--allow-degraded', 'redirectdir', '/m'],
    /cannot name 'redirectdir'\n {2}hint: Did you mean redirect-dir\?/,
  ],
  'a way without a dry run': [['mount', ...layers, '--way', 'mount', '/m'], /hint: Add --dry-run\./],
  'numbers longer than paths': [
    ['mount', '--dry-run', '--way', 'numbers', ...layers, '/m'],
    /--way is only for longer paths/,
  ],
  'nothing to unmount': [['umount'], /missing operand 'TARGET'/],
  'a time without a unit': [['umount', '--timeout', '5', '/m'], /--timeout cannot be '5'\n.*500ms, 5s or 2m/],
  'a time of another unit': [['umount', '--timeout=5h', '/m'], /--timeout cannot be '5h'/],
  'no time': [['umount', '--timeout'], /option '--timeout <TIME>' argument missing/],
  'the root as a tree': [['umount', '--recursive', '/'], /^overlayfs: TARGET must not be the root directory/],
  'the old name of a flag': [['umount', '--remove-work', '/m'], /unknown option '--remove-work'/],
  'nothing to hide': [['whiteout'], /missing operand 'PATH'/],
  'recursive alone': [['whiteout', '--recursive', '/x'], /hint: Add --replace, or leave it out\./],
  'null without a list': [['whiteout', '-0', '/x'], /--null needs standard input/],
  'two lists': [['whiteout', '-', '-'], /can be read only once/],
  'a root': [['whiteout', '/'], /^overlayfs: PATH must end in the name/],
  'a path for features': [['features', '/x'], /too many arguments/],
};

for (const [title, [args, says]] of Object.entries(wrong)) {
  test.serial(`wrong usage: ${title}`, async (t) => {
    const { code, stdout, stderr } = await overlayfs(...args);
    t.is(code, args[0]?.startsWith('run') ? 125 : 2, stderr);
    t.is(stdout, '');
    t.true(stderr.startsWith('overlayfs: '));
    t.regex(stderr, says);
    t.regex(stderr, /\nTry 'overlayfs (\w+ )?--help'\.\n$/);
  });
}

test.serial('wrong usage with --json is a document too', async (t) => {
  const unknown = await json('mount', '--upper', '/u');
  t.is(unknown.code, 2);
  t.deepEqual(unknown.document, {
    errors: [{ code: 'ERR_USAGE', message: "unknown option '--upper'", hint: 'Did you mean --upperdir?' }],
  });
  const { code, document } = await json('mount', ...layers, '--userxattr', '--metacopy', '/m', '--dry-run');
  t.is(code, 2);
  t.like((document['errors'] as object[])[0], { code: 'ERR_INVALID_ARG_VALUE', reason: 'conflicting-options' });
  t.is(run(['umount', '--', '--json']).stdout, '', 'after -- it is a path');
});

const spell = (name: string, source: Text) => render(source, spellingOf(commands[name] as (typeof commands)[string]));

test('texts of the library come in the words of the command', (t) => {
  const inFlagsOf = (source: Text) => spell('mount', source);
  const create = either('create it', text`pass ${option('create', true)}`);
  t.is(inFlagsOf(create), 'create it, or pass --create');
  t.is(inFlagsOf(text`pass ${option('allowDegraded', ['redirectDir'])}`), 'pass --allow-degraded redirect-dir');
  t.is(inFlagsOf(text`add ${option('redirectDir', 'nofollow')}`), 'add --redirect-dir nofollow');
  t.is(inFlagsOf(text`${option('nfsExport', true)}, ${option('index', false)}`), '--nfs-export, --no-index');
  t.is(inFlagsOf(text`${argument('lowerdir[2]')} is wrong`), '--lowerdir is wrong');
  t.is(spell('whiteout', text`${argument('paths[2]')} is wrong`), 'PATH is wrong');
  t.is(spell('squash', text`${argument('layers[1]')} is wrong`), 'LAYER is wrong');
  t.is(spell('run', text`${argument('readonly[0]')}, ${option('readonly')}`), '--readonly-path, --readonly');
  t.is(spell('image run', text`${argument('volumes[0].source')} is wrong`), '--volume is wrong');
  // Remedies that only programs have do not appear, unless there is no other.
  const rootless = text`pass ${option('rootless', 'keep')}`;
  t.is(inFlagsOf(either('run it as root', rootless)), 'run it as root');
  t.is(inFlagsOf(rootless), "pass `rootless: 'keep'`");
  t.is(inFlagsOf(either(text`call ${member('unmount')}`, 'close it')), 'close it');
  const limit = text`more than ${option('maxEntries')} allows, ${3}`;
  t.is(spell('apply', limit), 'more than --max-entries allows, 3');
  t.is(spell('image run', limit), 'more than --max-entries allows, 3');
  t.is(spell('squash', limit), 'more than `maxEntries` allows, 3');
  t.is(render(create), 'create it, or pass `create: true`');
});

/** All options that the sources of the library name in texts, and the hints of all reasons. */
const allTexts: readonly Text[] = [
  ...Object.values(reasons),
  ...readdirSync(join(packageRoot, 'lib'), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.ts'))
    .flatMap((file) => readFileSync(join(packageRoot, 'lib', file), 'utf8').match(/(?<=\boption\(')\w+/g) ?? [])
    .flatMap((name) => [undefined, true, false, 'word', ['word']].map((value) => option(name, value))),
];

test('a text names a flag only to a command that has it', (t) => {
  t.true(allTexts.length > Object.keys(reasons).length + 100);
  for (const [name, command] of Object.entries(commands)) {
    const flags = flagsOfCommand(command).flatMap(({ spelling: first, hasNegative }) =>
      hasNegative ? [`--${first}`, `--no-${first}`] : [`--${first}`],
    );
    const words = allTexts.flatMap((source) => spell(name, source).match(/(?<!mount )--[\w-]+/g) ?? []);
    t.deepEqual(
      words.filter((word) => !flags.includes(word)),
      [],
      name,
    );
  }
});

test('each reason has a hint that a user of some command can follow without the API', (t) => {
  const isSpelled = (hint: Text) => Object.keys(commands).some((name) => !spell(name, hint).includes('`'));
  const apiOnly = Object.entries(reasons).filter(([, hint]) => !isSpelled(hint));
  t.deepEqual(
    apiOnly.map(([reason]) => reason),
    ['mark-unseen'],
  );
});

test('arguments are what the kernel has, where Node has lost something', (t) => {
  t.deepEqual(argumentsOf(['umount', 'ü'], t.fail as never), ['umount', 'Ã¼']);
  t.deepEqual(
    argumentsOf(['umount', 'a\ufffd'], () => ['node', '--flag', 'main.js', 'umount', 'a\xff']),
    ['umount', 'a\xff'],
  );
  for (const written of [[], ['title'], ['node', 'main.js', 'whiteout', 'a\xff'], ['a\xff']]) {
    t.throws(() => argumentsOf(['umount', 'a\ufffd'], () => written), { message: /no UTF-8/ });
  }
});

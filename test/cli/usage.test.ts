/** Messages about a wrong command line, and help. Imports internals: a process for each phrase would take minutes. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { argumentsOf } from '#lib/cli/command-line.js';
import { inFlags } from '#lib/cli/spelling.js';
import { argument, either, member, option, render, type Text, text } from '#lib/text.js';
import { packageRoot } from '../support/index.js';
import { json, overlayfs, run } from './run.js';

const layers = ['--lower', '/l', '--upper', '/u', '--work', '/w'];

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
    ['umount', '--remove-work'],
    ['whiteout', '-0, --null'],
    ['features', '--json'],
    ['run', '--at DIR'],
  ] as const) {
    const { code, stdout, stderr } = await overlayfs(name, '--help');
    t.is(code, 0);
    t.is(stderr, '');
    t.true(stdout.startsWith(`usage: overlayfs ${name} `));
    t.true(stdout.includes(flag), flag);
    t.regex(stdout, /^exit codes:\n {2}0 .*\n {2}1 .*\n {2}2 /m);
    t.regex(stdout, new RegExp(`^examples:\n(?:  .*overlayfs ${name}.*\n)+`, 'm'));
  }
});

test.serial('the examples in the help are right: those of mount, as dry runs', async (t) => {
  const { stdout } = await overlayfs('mount', '--help');
  const examples = stdout.slice(stdout.indexOf('examples:')).match(/(?<=overlayfs ).*/g) ?? [];
  t.true(examples.length > 3);
  for (const example of examples) {
    const args = example.split(' ').filter((word) => word !== '--dry-run');
    t.is((await overlayfs(...args, '--dry-run')).code, 0, example);
  }
});

const wrong: Readonly<Record<string, readonly [args: string[], says: RegExp]>> = {
  'an unknown command': [['mont'], /unknown command 'mont'\n {2}hint: Did you mean mount\?/],
  'a flag for a command': [['--json'], /a command comes first/],
  'an unknown flag': [['mount', '--uper', '/u', '/m'], /unknown option '--uper'\n {2}hint: Did you mean --upper\?/],
  "the kernel's spelling": [['mount', '--redirect_dir=on', '/m'], /Did you mean --redirect-dir\?/],
  "the library's spelling": [['mount', '--redirectDir', 'on', '/m'], /Did you mean --redirect-dir\?/],
  'an unknown short flag': [['umount', '-x', '/m'], /unknown option '-x'/],
  'a wrong word': [['mount', '--xino', 'yes', '/m'], /--xino cannot be 'yes'\n {2}hint: One of: on, off, auto\./],
  'a word that is nearly right': [['mount', '--atime', 'no-atime', '/m'], /Did you mean noatime\?/],
  'a flag with a value too many': [['mount', '--index=on', '/m'], /--index takes no value/],
  'a flag without a value': [['mount', '/m', '--lower'], /--lower needs a value/],
  'a flag whose value is a flag': [
    ['mount', '--upper', '--work', '/w'],
    /--upper needs a value, but an option follows/,
  ],
  'a flag twice': [['mount', ...layers, '--upperdir', '/v', '/m'], /--upperdir is given twice/],
  'a flag and its opposite': [['mount', ...layers, '--index', '--no-index', '/m'], /--no-index is given twice/],
  'no opposite where it would say nothing': [['mount', ...layers, '--no-volatile', '/m'], /unknown option/],
  'an empty path': [['mount', '--lower', '', '/m'], /--lower must not be empty/],
  'a program without a place': [['run', ...layers, 'true'], /name where the program sees the overlay: --at DIR/],
  'no program': [['run', ...layers, '--at', '/m'], /name the program to run\n {2}hint: It comes after --/],
  'an empty target': [['umount', ''], /a path must not be empty/],
  'no target': [['mount', ...layers], /name the directory to mount on/],
  'two targets': [['mount', ...layers, '/m', '/n'], /2 directories to mount on: only one is possible/],
  'no lower': [['mount', '/m'], /name the lower layers/],
  'an upper without work': [
    ['mount', '--lower', '/l', '--upper', '/u', '/m'],
    /--upper needs --work,[\s\S]*pass --create/,
  ],
  'one lower alone': [
    ['mount', '--lower', '/l', '/m'],
    /an overlay needs at least 2 paths in --lower[\s\S]*hint: Add --upper and --work, or add a second --lower,/,
  ],
  'a work alone': [
    ['mount', ...layers.slice(0, 2), '--lower', '/k', '--work', '/w', '/m'],
    /hint: Leave it out, or add --upper\./,
  ],
  'a long path': [['mount', '--lower', '/k', '--lower', 'x'.repeat(5000), '/m'], /^overlayfs: --lower must be a path/],
  'a conflict': [
    ['mount', ...layers, '--nfs-export', '--no-index', '/m'],
    /--nfs-export and --no-index exclude each other: .*\n {2}reason: conflicting-options\n {2}hint: Leave --index out/,
  ],
  'a name that cannot fall away': [
    ['mount', ...layers, '--allow-degraded', 'redirectdir', '/m'],
    /cannot name 'redirectdir'\n {2}hint: Did you mean redirect-dir\?/,
  ],
  'a way without a dry run': [['mount', ...layers, '--way', 'mount', '/m'], /hint: Add --dry-run\./],
  'numbers longer than paths': [['mount', '--dry-run', '--way', 'numbers', ...layers, '/m'], /Use longer paths/],
  'nothing to unmount': [['umount'], /name the mount points to unmount/],
  'a time without a unit': [['umount', '--timeout', '5', '/m'], /--timeout cannot be '5'\n.*500ms, 5s or 2m/],
  'a time of another unit': [['umount', '--timeout=5h', '/m'], /--timeout cannot be '5h'/],
  'no time': [['umount', '--timeout'], /--timeout needs a value/],
  'tree with detach': [['umount', '--tree', '--detach', '/m'], /--detach cannot be used with --tree/],
  'tree with remove-work': [['umount', '--remove-work', '--tree', '/m'], /--remove-work cannot be used with --tree/],
  'tree with a namespace': [['umount', '--namespace', '/n', '--tree', '/m'], /--namespace cannot be used with --tree/],
  'bulk without tree': [['umount', '--bulk', '/m'], /--bulk needs --tree/],
  'the root as a tree': [['umount', '--tree', '/'], /^overlayfs: TARGET must not be the root directory/],
  'detach with remove-work': [
    ['umount', '--detach', '--remove-work', '/m'],
    /--remove-work and --detach exclude each other/,
  ],
  'nothing to hide': [['whiteout'], /name the paths/],
  'recursive alone': [['whiteout', '--recursive', '/x'], /hint: Add --replace, or leave it out\./],
  'null without a list': [['whiteout', '-0', '/x'], /--null needs standard input/],
  'two lists': [['whiteout', '-', '-'], /can be read only once/],
  'a root': [['whiteout', '/'], /^overlayfs: PATH must end in the name/],
  'a path for features': [['features', '/x'], /takes no path/],
};

for (const [title, [args, says]] of Object.entries(wrong)) {
  test.serial(`wrong usage: ${title}`, async (t) => {
    const { code, stdout, stderr } = await overlayfs(...args);
    t.is(code, 2, stderr);
    t.is(stdout, '');
    t.true(stderr.startsWith('overlayfs: '));
    t.regex(stderr, says);
    t.regex(stderr, /\nTry 'overlayfs (\w+ )?--help'\.\n$/);
  });
}

test.serial('wrong usage with --json is a document too', async (t) => {
  const unknown = await json('mount', '--uper', '/u');
  t.is(unknown.code, 2);
  t.deepEqual(unknown.document, {
    errors: [{ code: 'ERR_USAGE', message: "unknown option '--uper'", hint: 'Did you mean --upper?' }],
  });
  const { code, document } = await json('mount', ...layers, '--userxattr', '--metacopy', '/m', '--dry-run');
  t.is(code, 2);
  t.like((document['errors'] as object[])[0], { code: 'ERR_INVALID_ARG_VALUE', reason: 'conflicting-options' });
  t.is(run(['umount', '--', '--json']).stdout, '', 'after -- it is a path');
});

test('texts of the library come in the words of the command line', (t) => {
  const inFlagsOf = (source: Text) => render(source, inFlags);
  const create = either('create it', text`pass ${option('create', true)}`);
  t.is(inFlagsOf(create), 'create it, or pass --create');
  t.is(inFlagsOf(text`pass ${option('allowDegraded', ['redirectDir'])}`), 'pass --allow-degraded redirect-dir');
  t.is(inFlagsOf(text`add ${option('redirectDir', 'nofollow')}`), 'add --redirect-dir nofollow');
  t.is(inFlagsOf(text`${option('nfsExport', true)}, ${option('index', false)}`), '--nfs-export, --no-index');
  t.is(inFlagsOf(text`${argument('lowerdir[2]')} is wrong`), '--lower is wrong');
  t.is(inFlagsOf(text`${argument('paths[2]')} is wrong`), 'PATH is wrong');
  // Remedies that only programs have do not appear, unless there is no other.
  const rootless = text`pass ${option('rootless', 'keep')}`;
  t.is(inFlagsOf(either('run it as root', rootless)), 'run it as root');
  t.is(inFlagsOf(rootless), "pass `rootless: 'keep'`");
  t.is(inFlagsOf(either(text`call ${member('unmount')}`, 'close it')), 'close it');
  t.is(inFlagsOf(text`more than ${option('maxEntries')} allows, ${3}`), 'more than --max-entries allows, 3');
  t.is(render(create), 'create it, or pass `create: true`');
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

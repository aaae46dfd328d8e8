/** The addon needs no library by name and nothing of libc that an old one lacks: one binary for glibc and musl. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { packageRoot } from '../support/index.js';

const binary = join(packageRoot, 'build/Release/overlayfs.node');

/** In glibc and musl alike, and bound right without a version. */
const allowed: readonly (string | RegExp)[] = [
  /^napi_/,
  // OpenSSL's, weak: missing where the runtime does not export them.
  /^SHA256_(Init|Update|Final)$/,
  '__errno_location',
  'abort',
  'calloc',
  'clone',
  'free',
  'malloc',
  'memchr',
  'memcmp',
  'memcpy',
  'memmove',
  'memset',
  'prctl',
  'pthread_attr_destroy',
  'pthread_attr_init',
  'pthread_attr_setdetachstate',
  'pthread_attr_setstacksize',
  'pthread_create',
  'pthread_join',
  'pthread_mutex_lock',
  'pthread_mutex_unlock',
  'pthread_sigmask',
  'sched_yield',
  'sigfillset',
  'strcmp',
  'strlen',
  'syscall',
  'sysconf',
];

test('the undefined symbols are those on the list, without a version', (t) => {
  const symbols = execFileSync('objdump', ['-T', binary], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => line.includes('*UND*'))
    // A weak symbol has a column more.
    .map((line) =>
      line
        .trim()
        .split(/\s+/)
        .slice(/ w /.test(line) ? 5 : 4)
        .join(' '),
    );
  t.true(symbols.length > 10);
  const isAllowed = (symbol: string) =>
    allowed.some((known) => (typeof known === 'string' ? known === symbol : known.test(symbol)));
  t.deepEqual(
    symbols.filter((symbol) => !isAllowed(symbol)),
    [],
  );
});

test('no library is named, and the addon stays loaded', (t) => {
  const dynamic = execFileSync('readelf', ['-d', binary], { encoding: 'utf8' });
  t.false(dynamic.includes('(NEEDED)'));
  t.true(dynamic.includes('NODELETE'));
});

test('what is exported is what Node asks for', (t) => {
  const exported = execFileSync('objdump', ['-T', binary], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => line.includes(' .text'))
    .map((line) => line.trim().split(/\s+/).at(-1));
  t.deepEqual(exported.sort(), ['napi_register_module_v1', 'node_api_module_get_api_version_v1']);
  t.true(readFileSync(binary).length < 256 * 1024);
});

test('the launcher is a static program of a few kB, without any library', (t) => {
  const launcher = join(packageRoot, 'build/Release/launch/overlayfs-launch');
  t.true(readFileSync(launcher).length < 32 * 1024);
  const headers = execFileSync('readelf', ['-l', launcher], { encoding: 'utf8' });
  t.false(/INTERP|DYNAMIC/.test(headers));
});

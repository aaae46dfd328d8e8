/** The launcher under a seccomp(2) filter that denies one of its system calls: it goes on, or says where it has failed. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { text } from 'node:stream/consumers';
import { sameMaps } from '../../lib/programs/isolation.js';
import { orders, toArguments } from '../../lib/programs/launch.js';
import { makeTree, mountTest, packageRoot, scaled, scratch } from '../support/index.js';

/** Denies a system call to itself, and becomes a program: the BPF loads the number, compares, and answers. */
const denying = `
import ctypes, os, struct, sys
number, errno, *command = sys.argv[1:]
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, int(number)), (6, 0, 0, 0x50000 | int(errno)), (6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack('H6xP', len(lines), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program): sys.exit('no filter')
os.execv(command[0], command)`;

/** Returns the calls of the launcher with their numbers here, without those that start and end it. */
function callsOf(): [name: string, number: string][] {
  const read = (path: string) => readFileSync(join(packageRoot, 'native', path), 'utf8');
  const [common = '', x64 = '', arm64 = ''] = read('abi.h').split(/#(?:if|elif|else)\b.*/);
  const numbers = `${common}${process.arch === 'x64' ? x64 : arm64}`.matchAll(/^ {2}(\w+) = (\d+),/gm);
  const used = new Set(Array.from(read('launch.cc').matchAll(/abi::(\w+)/g), ([, name]) => name));
  const ours = Array.from(numbers, ([, name = '', number = '']): [string, string] => [name, number]);
  return ours.filter(([name]) => used.has(name) && !['execve', 'exit'].includes(name));
}

mountTest(
  'each system call of the launcher, denied: no hang, no silence, nothing that is hidden',
  { needs: 'mountSetattr' },
  async (t) => {
    const dir = scratch(t);
    makeTree(dir, { 'hidden/secret': 'secret', secret: 'secret', 'shut/file': 'shut', 'at/': '', 'open/': '' });
    const at = (name: string) => join(dir, name);
    const place = (path: string) => ({ path, real: path });
    const launch = orders({
      ...{ report: 3, closed: [[4, 2 ** 31 - 1]], user: undefined, argv0: undefined, hostname: 'inside', cwd: dir },
      mounts: [{ mount: { tree: at('shut') }, at: place(at('at')) }],
      ...{ readonly: [place(at('shut'))], hidden: [at('hidden'), at('secret')], writable: [at('open')] },
      ...{
        isContained: true,
        isRestricted: true,
        hasOwnDev: true,
        keepsCapabilities: false,
        parent: process.pid,
        unshared: new Set(['pid', 'net', 'ipc', 'uts'] as const),
      },
      ...{ lock: { maps: sameMaps(), isNeeded: false }, ids: { uid: 65534, gid: 65534, groups: [] } },
      command: ['sh', '-c', 'cat hidden/* secret; (echo no > shut/file) 2>&-; echo ran'],
    });
    const launcher = join(packageRoot, 'build/Release/launch/overlayfs-launch');
    const told = async (number: string, errno: string): Promise<string> => {
      const args = ['-c', denying, number, errno, launcher, ...toArguments(launch)];
      const child = spawn('python3', args, {
        stdio: ['ignore', 'pipe', 'ignore', 'pipe'],
        timeout: 120_000, // an emulated machine is slow
        killSignal: 'SIGKILL',
      });
      const ended = new Promise<string>((resolve) =>
        child.on('close', (code, signal) => resolve(String(signal ?? code))),
      );
      const [output, report, end] = await Promise.all([
        text(child.stdout as Readable),
        text(child.stdio[3] as Readable),
        ended,
      ]);
      if (output === 'ran\n' && report === '') return end === '0' ? 'ran' : `ran, ${end}`;
      return output === '' && /^\d+ \d+$/.test(report) && end === '127' ? 'reported' : `${output} ${report} ${end}`;
    };
    const outcomes: Record<string, string> = {};
    const errnos = ['1', '38'].slice(0, scaled(2, 1));
    const waiting = errnos.flatMap((errno) => callsOf().map(([name, number]) => ({ name, number, errno })));
    const work = async () => {
      for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
        outcomes[`${next.name} ${next.errno}`] = await told(next.number, next.errno);
      }
    };
    await Promise.all(Array.from({ length: 4 }, work));
    const others = Object.entries(outcomes).filter(([, outcome]) => outcome !== 'ran' && outcome !== 'reported');
    // A shell needs close(2), and nothing can be reported without write(2).
    const silent = errnos.flatMap((errno) => [`close ${errno}`, `write ${errno}`]);
    t.deepEqual(Object.fromEntries(others), Object.fromEntries(silent.map((name) => [name, '  127'])));
    t.is(readFileSync(at('shut/file'), 'utf8'), 'shut');
  },
);

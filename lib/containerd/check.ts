/** Looks at a machine: what a server for containerd needs, and what containerd needs to use it. Changes nothing. */
import { execFile } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { run } from '../kernel/task.js';
import { features } from '../rootless/lease.js';
import { loadSqlite } from '../snapshots/sqlite.js';
import { canRemap, refuseUnsuitable } from '../snapshots/suitable.js';
import { isAnswered } from './listen.js';
import { checkAddress } from './options.js';
import { loadService } from './serve.js';

/** One thing that was looked at. */
export interface Finding {
  readonly name: string;
  readonly isRight: boolean;
  readonly detail: string;
  /** The remedy, for something that is not right. */
  readonly hint?: string;
}

export interface Machine {
  readonly root: string;
  readonly address: string | undefined;
  /** containerd's configuration. */
  readonly config: string;
}

type Look = (machine: Machine) => Promise<Omit<Finding, 'name'>>;

const right = (detail: string): Omit<Finding, 'name'> => ({ isRight: true, detail });
const wrong = (detail: string, hint: string): Omit<Finding, 'name'> => ({ isRight: false, detail, hint });

/** Returns the first line that a program prints, or undefined if there is no such program. */
function ask(program: string, ...args: string[]): Promise<string | undefined> {
  return new Promise((resolve) => {
    execFile(program, args, { timeout: 5000 }, (error, stdout) => {
      const isMissing = (error as NodeJS.ErrnoException | null)?.code === 'ENOENT';
      resolve(isMissing ? undefined : (stdout.split('\n', 1)[0] ?? ''));
    });
  });
}

/** Returns the nearest directory that exists: the one in which the root is, or would be made. */
function nearest(path: string): string {
  return existsSync(path) || path === '/' ? path : nearest(dirname(path));
}

const looks: Readonly<Record<string, Look>> = {
  async overlay() {
    const { overlay, mayMount } = await features();
    if (overlay === false) return wrong('the kernel has no overlay file system', 'run modprobe overlay');
    if (mayMount === false) return wrong('this process may not mount', 'run as root');
    return right('the kernel has it');
  },
  async packages() {
    await loadSqlite();
    await loadService();
    return right('SQLite, @grpc/grpc-js and @bufbuild/protobuf are there');
  },
  async root({ root }) {
    const directory = nearest(root);
    await run(refuseUnsuitable(directory));
    const remap = (await run(canRemap(directory))) ? 'remap-ids' : 'no remap-ids';
    return right(`the file system of ${directory} can hold snapshots; capabilities: ${remap}`);
  },
  async socket({ address }) {
    const path = checkAddress(address);
    if (path === undefined) return wrong('no address is given', 'pass --address SOCKET');
    const directory = dirname(path);
    if (!existsSync(directory)) return wrong(`the directory ${directory} does not exist`, `run mkdir -p ${directory}`);
    accessSync(directory, constants.W_OK);
    return right((await isAnswered(path)) ? `somebody answers on ${path}` : `${path} is free`);
  },
  async containerd() {
    const version = await ask('containerd', '--version');
    return version === undefined ? wrong('it is not installed', 'install containerd 1.6 or later') : right(version);
  },
  async runtime() {
    const found = (await ask('runc', '--version')) ?? (await ask('crun', '--version'));
    return found === undefined ? wrong('there is neither runc nor crun', 'install runc') : right(found);
  },
  async configuration({ address, config }) {
    if (!existsSync(config)) return wrong(`${config} does not exist`, 'docs/containerd.md has what belongs into it');
    const text = readFileSync(config, 'utf8').replace(/^\s*#.*$/gm, '');
    // Up to the next table, or the end.
    const plugins = Array.from(text.matchAll(/^\s*\[proxy_plugins\.([^\]]+)\]([\s\S]*?)(?=^\s*\[|(?![\s\S]))/gm));
    const socket = checkAddress(address);
    const found = plugins.find(
      ([, , body = '']) =>
        socket !== undefined && /^\s*address\s*=\s*(["'])(?:unix:\/\/)?([^"']*)\1/m.exec(body)?.[2] === socket,
    );
    if (found === undefined) {
      return wrong(`${config} names no proxy plugin at this address`, 'docs/containerd.md has what belongs into it');
    }
    const [, name, body = ''] = found;
    if (!/^\s*type\s*=\s*["']snapshot["']/m.test(body)) {
      return wrong(`the proxy plugin ${name} is not of the type snapshot`, 'write type = "snapshot"');
    }
    return right(`${config} has the proxy plugin ${name}`);
  },
};

export async function checkMachine(machine: Machine): Promise<Finding[]> {
  const findings: Finding[] = [];
  for (const [name, look] of Object.entries(looks)) {
    try {
      findings.push({ name, ...(await look(machine)) });
    } catch (error) {
      const { message, hint = '' } = error as Error & { hint?: string };
      findings.push({ name, isRight: false, detail: message.replace(` ${hint}`, '').replace(/\.$/, ''), hint });
    }
  }
  return findings;
}

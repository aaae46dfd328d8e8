/** The programs that the library is measured beside: compiled here, and started when they are first needed. */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Peer } from './peer.js';

export function packageRoot(): string {
  let directory = import.meta.dirname;
  while (!existsSync(join(directory, 'package.json'))) {
    const parent = dirname(directory);
    if (parent === directory) throw new Error(`no package.json above ${import.meta.dirname}`);
    directory = parent;
  }
  return directory;
}

/** A peer that needs packages which a machine may lack. */
export type Optional = 'libmount' | 'containerd' | 'snapshotservice' | 'umoci' | 'ctr';

const bench = join(packageRoot(), 'bench');

function compileC(program: string, sources: readonly string[], ...options: string[]): void {
  const paths = sources.map((source) => join(bench, source));
  execFileSync('cc', ['-O2', '-pthread', '-o', program, ...paths, ...options], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

/** Debian's packages of Go code: a workspace of their own, in which no module is fetched. */
const GO_WORKSPACE = '/usr/share/gocode';

function compileGo(program: string, source: string): void {
  const own = {
    GOCACHE: join(dirname(program), 'go-cache'),
    GOPATH: GO_WORKSPACE,
    GO111MODULE: 'off',
    GOFLAGS: '',
    CGO_ENABLED: '0',
  };
  execFileSync('/usr/bin/go', ['build', '-o', program, join(bench, source)], {
    cwd: dirname(program),
    env: { ...process.env, HOME: dirname(program), ...own },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

function lacksContainerd(): string | undefined {
  if (!existsSync(join(GO_WORKSPACE, 'src/github.com/containerd/containerd/mount'))) {
    return 'golang-github-containerd-containerd-dev is not installed';
  }
  return existsSync('/usr/bin/go') ? undefined : 'golang-go is not installed';
}

const optional: Readonly<Record<Optional, { lacks(): string | undefined; compile(program: string): void }>> = {
  umoci: {
    lacks: () => (existsSync('/usr/bin/umoci') ? undefined : 'umoci is not installed'),
    compile: () => {},
  },
  ctr: {
    lacks: () =>
      existsSync('/usr/bin/ctr') && existsSync('/usr/bin/containerd') ? undefined : 'containerd is not installed',
    compile: () => {},
  },
  libmount: {
    lacks: () => (existsSync('/usr/include/libmount/libmount.h') ? undefined : 'libmount-dev is not installed'),
    compile: (program) => compileC(program, ['libmount/main.c', 'peer/pairs.c'], '-lmount'),
  },
  containerd: {
    lacks: () => lacksContainerd(),
    compile: (program) => compileGo(program, 'containerd/main.go'),
  },
  snapshotservice: {
    lacks: () => lacksContainerd(),
    compile: (program) => compileGo(program, 'snapshotservice/main.go'),
  },
};

export class Peers {
  /** The C program, which also keeps a CPU busy. */
  readonly program: string;
  readonly c: Peer;
  readonly #directory: string;
  readonly #others = new Map<Optional, Peer>();

  constructor(directory: string) {
    this.#directory = directory;
    this.program = join(directory, 'peer');
    const sources = readdirSync(join(bench, 'peer')).filter((name) => name.endsWith('.c'));
    compileC(
      this.program,
      sources.map((name) => `peer/${name}`),
    );
    this.c = new Peer(this.program, ['serve']);
  }

  /** Why a peer cannot be had on this machine. */
  lacks(name: Optional): string | undefined {
    return optional[name].lacks();
  }

  get(name: Optional): Peer {
    const started = this.#others.get(name);
    if (started !== undefined) return started;
    const peer = new Peer(this.compile(name), []);
    this.#others.set(name, peer);
    return peer;
  }

  /** Returns the program, compiled. */
  compile(name: Optional): string {
    const program = join(this.#directory, name);
    if (!existsSync(program)) optional[name].compile(program);
    return program;
  }

  get pids(): readonly number[] {
    return this.#all.map(({ pid }) => pid);
  }

  stop(): void {
    for (const peer of this.#all) peer.stop();
  }

  get #all(): readonly Peer[] {
    return [this.c, ...this.#others.values()];
  }
}

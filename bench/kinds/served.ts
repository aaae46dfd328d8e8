/** A cycle of verbs over the socket, beside containerd's own snapshotter behind its own service in Go. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { jobRow } from '../job.js';
import { atMost, type Kind } from '../kind.js';
import { Peer } from '../peer.js';
import { type Peers, packageRoot } from '../peers.js';
import type { Site } from '../stage.js';

const CYCLES = 10;

const directoryOf = ({ base }: Site): string => join(base, 'served');

/** The command that serves a root at an address. */
type Command = (root: string, address: string) => readonly string[];

/** A server and its client, which are started when they are first used. The client is in Go for both sides, as containerd is. */
class Pair {
  readonly #directory: string;
  readonly #command: Command;
  readonly #count: number;
  readonly #peers: Peers;
  #server: ChildProcess | undefined;
  #client: Peer | undefined;

  constructor(directory: string, command: Command, count: number, peers: Peers) {
    this.#directory = directory;
    this.#command = command;
    this.#count = count;
    this.#peers = peers;
  }

  async #start(): Promise<Peer> {
    mkdirSync(this.#directory, { recursive: true });
    const address = join(this.#directory, 'socket');
    const [name = '', ...args] = this.#command(join(this.#directory, 'root'), address);
    this.#server = spawn(name, args, { stdio: ['ignore', 'ignore', 'inherit'] });
    while (!existsSync(address)) await new Promise((resolve) => setTimeout(resolve, 20));
    const client = new Peer(this.#peers.compile('snapshotservice'), ['drive', address]);
    await client.fill(this.#count);
    return client;
  }

  /** In ms. */
  async cycle(): Promise<number> {
    this.#client ??= await this.#start();
    return (await this.#client.cycle(CYCLES)) / 1000;
  }

  stop(): void {
    this.#client?.stop();
    this.#server?.kill('SIGKILL');
  }
}

/** Those that are there: the warm-up uses them too. */
const pairs = new Map<string, Pair>();

function pairOf(directory: string, command: Command, count: number, peers: Peers): Pair {
  const pair = pairs.get(directory) ?? new Pair(directory, command, count, peers);
  pairs.set(directory, pair);
  return pair;
}

const served = (count: number): Kind => ({
  what: `served among ${count} : containerd`,
  ...jobRow,
  on: ['ext4'],
  needs: 'snapshotservice',
  warmUpBlocks: 40,
  setUp: (site) => () => {
    for (const pair of pairs.values()) pair.stop();
    pairs.clear();
    rmSync(directoryOf(site), { recursive: true, force: true });
  },
  blocks(site, peers) {
    const at = (name: string) => join(directoryOf(site), `${name}-${count}`);
    const program = [process.execPath, join(packageRoot(), 'dist/cli/main.js'), 'serve', '--log-level', 'warn'];
    const ours = pairOf(
      at('ours'),
      (root, to) => [...program, '--root', root, '--address', to],
      site.share(count),
      peers,
    );
    const serve = (root: string, to: string) => [peers.compile('snapshotservice'), 'serve', root, to];
    const peer = pairOf(at('theirs'), serve, site.share(count), peers);
    return [() => ours.cycle(), () => peer.cycle()];
  },
  bound: () => atMost(1),
});

export const servedKinds: readonly Kind[] = [served(10), served(10_000)];

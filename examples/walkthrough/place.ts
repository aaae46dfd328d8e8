/** A directory in which things are made and looked at, by paths relative to it. */
import { lstat, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isWhiteout } from 'overlayfs';
import { check, output } from './terminal.js';
import { longLine } from './tree.js';

export class Place {
  readonly dir: string;

  constructor(dir: string) {
    this.dir = dir;
  }

  at(path: string): string {
    return join(this.dir, path);
  }

  async makeDirectories(...paths: string[]): Promise<void> {
    for (const path of paths) await mkdir(this.at(path), { recursive: true });
  }

  async write(path: string, text: string): Promise<void> {
    await mkdir(dirname(this.at(path)), { recursive: true });
    await writeFile(this.at(path), text);
  }

  async showLines(...paths: string[]): Promise<void> {
    for (const path of paths) output([longLine(path, await lstat(this.at(path)))]);
  }

  async checkText(path: string, expected: string): Promise<void> {
    check(`${path} reads ${JSON.stringify(expected)}`, await readFile(this.at(path), 'utf8'), expected);
  }

  async checkNames(path: string, expected: readonly string[]): Promise<void> {
    const claim = expected.length === 0 ? `${path} is empty` : `${path} holds ${expected.join(', ')}`;
    check(claim, (await readdir(this.at(path))).sort(), [...expected].sort());
  }

  async checkAbsent(path: string): Promise<void> {
    const look = lstat(this.at(path));
    const found = await look.then(
      () => 'it is there',
      (error: NodeJS.ErrnoException) => error.code,
    );
    check(`${path} is not there`, found, 'ENOENT');
  }

  async checkWhiteout(path: string): Promise<void> {
    const stats = await lstat(this.at(path));
    check(`${path} is a character device 0, 0`, [stats.isCharacterDevice(), stats.rdev], [true, 0]);
    check(`isWhiteout('${path}') says so too`, await isWhiteout(this.at(path)));
  }
}

#!/usr/bin/env node
/**
 * The program `overlayfs`. It loads only what the call needs: the commands, or the mount(8) helper if its name is
 * `mount.overlay`.
 */
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';

function version(): string {
  // The path is relative to dist/cli/main.js.
  const { version: number } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return `overlayfs ${number}\n`;
}

const [, program = '', ...words] = process.argv;
if (basename(program) === 'mount.overlay') await import('./mount-helper/main.js');
else if (words[0] === '--version') process.stdout.write(version());
else process.exitCode = await (await import('./commands.js')).main(words);

#!/usr/bin/env node
/** The program `overlayfs`. Its version needs none of the commands. */
import { readFileSync } from 'node:fs';

function version(): string {
  // The path is relative to dist/cli/main.js.
  const { version: number } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'));
  return `overlayfs ${number}\n`;
}

const words = process.argv.slice(2);
if (words[0] === '--version' || words[0] === '-V') process.stdout.write(version());
else process.exitCode = await (await import('./commands.js')).main(words);

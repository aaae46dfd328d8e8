/** A program that uses each part of the package. */

/** Uses the addon, the launcher and the deferred modules, and an error's class; prints `file file lower-missing`. */
export const inTypeScript = `
import { mkdirSync, readdirSync } from 'node:fs';
import { findMountSync, mountOverlay, mountOverlaySync, OverlayError, type OverlayOptions, spawn } from 'overlayfs';

async function main(): Promise<void> {
  const dir: string = process.argv[2] ?? '';
  for (const name of ['lower/file', 'upper', 'work', 'merged']) mkdirSync(\`\${dir}/\${name}\`, { recursive: true });
  const options: OverlayOptions = {
    lowerdir: \`\${dir}/lower\`,
    upperdir: \`\${dir}/upper\`,
    workdir: \`\${dir}/work\`,
    target: \`\${dir}/merged\`,
  };
  const mounted = await mountOverlay(options);
  console.log(readdirSync(mounted.path).join());
  if (findMountSync(\`\${dir}/merged\`)?.type !== 'overlay') throw new Error('another mount');
  const child = spawn('ls', [\`\${dir}/lower/file/..\`], { mounts: [{ source: mounted, target: \`\${dir}/upper\` }], stdio: 'inherit' });
  await new Promise((ended) => child.on('close', ended));
  await mounted.unmount();
  try {
    mountOverlaySync({ ...options, lowerdir: \`\${dir}/none\` });
  } catch (error) {
    if (error instanceof OverlayError) console.log(error.reason);
  }
}
main();
`;

export const printed = 'file\nfile\nlower-missing\n';

export const inJavaScript = inTypeScript
  .replace(', type OverlayOptions', '')
  .replaceAll(/: (string|OverlayOptions|Promise<void>)(?= [={])/g, '');

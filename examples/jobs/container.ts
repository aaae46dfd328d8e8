/** `node container.js oci:DIR:TAG COMMAND...`: a container of an image. */
import { openImage } from 'overlayfs/images';

await using image = await openImage(process.argv[2] ?? '');
process.exitCode = (await image.run(process.argv.slice(3), { stdio: 'inherit' })).exitCode;

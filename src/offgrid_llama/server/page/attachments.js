// Pictures and sounds beside a question: chosen, pasted, dropped or recorded, and made into parts of a message.
//
// The server reads PNG, JPEG, GIF and BMP, and WAV, MP3 and FLAC. What else the browser can open is converted here.

const PICTURES = ["image/png", "image/jpeg"];
const SOUNDS = { "audio/wav": "wav", "audio/x-wav": "wav", "audio/mpeg": "mp3", "audio/flac": "flac", "audio/x-flac": "flac" };
const MAX_BYTES = 3 * 2 ** 20; // of a file that goes as it is: a request has a limit
const MAX_SIDE = 1536; // pixels of a larger picture
const SAMPLE_RATE = 16000; // of a sound that is converted

/** Return a file, or a Blob, as a data: URL. */
function asUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}

/** Return a picture as {kind, name, url}. */
async function picture(file) {
  if (PICTURES.includes(file.type) && file.size <= MAX_BYTES) return { kind: "image", name: file.name, url: await asUrl(file) };
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, MAX_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return { kind: "image", name: file.name, url: await asUrl(blob) };
}

/** Return a sound as {kind, name, url, format}. */
async function sound(file) {
  const format = SOUNDS[file.type];
  if (format && file.size <= MAX_BYTES) return { kind: "audio", name: file.name, url: await asUrl(file), format };
  const decoder = new OfflineAudioContext(1, 1, SAMPLE_RATE); // it resamples
  const decoded = await decoder.decodeAudioData(await file.arrayBuffer());
  return { kind: "audio", name: file.name, url: await asUrl(wav(decoded)), format: "wav" };
}

/** Return decoded sound as a WAV file of one channel, with 16 bits a sample. */
function wav(decoded) {
  const samples = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel += 1) {
    decoded.getChannelData(channel).forEach((value, i) => {
      samples[i] += value / decoded.numberOfChannels;
    });
  }
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, SAMPLE_RATE, true);
  view.setUint32(28, 2 * SAMPLE_RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.round(32767 * Math.max(-1, Math.min(1, value))), true));
  return new Blob([view.buffer], { type: "audio/wav" });
}

/** Return the node that shows an attachment. */
export function preview({ kind, name, url }) {
  const node = document.createElement(kind === "image" ? "img" : "audio");
  node.src = url;
  if (kind === "image") node.alt = name || "picture";
  else node.controls = true;
  return node;
}

/** Return the content of a message: the text alone, or with the attachments behind it, as OpenAI has them. */
export function content(text, attachments) {
  if (!attachments.length) return text;
  const parts = attachments.map(({ kind, url, format }) =>
    kind === "image"
      ? { type: "image_url", image_url: { url } }
      : { type: "input_audio", input_audio: { data: url.slice(url.indexOf(",") + 1), format } },
  );
  return [...(text ? [{ type: "text", text }] : []), ...parts];
}

/** The attachments of the question that is being written. */
export class Attachments {
  /**
   * @param {HTMLElement} strip shows them.
   * @param {(message: string) => void} refuse tells the reader why a file was not taken.
   * @param {() => void} changed is called when there are others.
   */
  constructor(strip, refuse, changed) {
    this.list = [];
    this.strip = strip;
    this.refuse = refuse;
    this.changed = changed;
  }

  /** Add files that the browser can open; tell of the others. */
  async add(files) {
    for (const file of files) {
      const make = { image: picture, audio: sound }[file.type.split("/")[0]];
      try {
        if (!make) throw new Error("not a picture or a sound");
        this.list.push(await make(file));
      } catch {
        this.refuse(`${file.name || "The file"} is no picture and no sound that this browser can open.`);
      }
    }
    this.show();
  }

  /** Return the attachments, and have none. */
  take() {
    const taken = this.list;
    this.put([]);
    return taken;
  }

  /** Have these attachments. */
  put(list) {
    this.list = list;
    this.show();
  }

  show() {
    this.strip.replaceChildren(...this.list.map((each) => this.item(each)));
    this.strip.hidden = !this.list.length;
    this.changed();
  }

  item(attachment) {
    const node = document.createElement("li");
    const remove = document.createElement("button");
    remove.type = "button";
    remove.textContent = "×";
    remove.setAttribute("aria-label", `Remove ${attachment.name || attachment.kind}`);
    remove.addEventListener("click", () => this.put(this.list.filter((each) => each !== attachment)));
    node.append(preview(attachment), remove);
    return node;
  }
}

/** Record from the microphone until the returned function is called, which gives the recording as a file. */
export async function record() {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const pieces = [];
  recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
  recorder.start();
  return () =>
    new Promise((resolve) => {
      recorder.addEventListener("stop", () => {
        for (const track of stream.getTracks()) track.stop();
        resolve(new File(pieces, "recording", { type: recorder.mimeType || "audio/webm" }));
      });
      recorder.stop();
    });
}

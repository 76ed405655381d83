// openai_client.mjs MODULES URL: talks to the server with OpenAI's client for JavaScript and prints what it got as JSON.
// MODULES: the folder into which package-lock.json was installed. What the scripts mean is in ../fixture/scripted.h.
import { createRequire } from 'node:module'

const [modules, baseURL] = process.argv.slice(2)
const { OpenAI } = createRequire(modules + '/')('openai')
const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
const model = 'tiny'
const call = '<tool_call>{"name":"weather","arguments":{"city":"Rome"}}</tool_call>'
const parameters = { type: 'object', properties: { city: { type: 'string' } } }
const result = {}

function messages(content) {
    return [{ role: 'user', content }]
}

async function chat() {
    const answer = await client.chat.completions.create({ model, messages: messages('say hello') })
    return { text: answer.choices[0].message.content, tokens: answer.usage.completion_tokens }
}

async function stream() {
    const stream = await client.chat.completions.create({ model, messages: messages('say hello there'), stream: true })
    let text = ''
    for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? ''
    return { text }
}

async function tools() {
    const runner = client.chat.completions.stream({
        model,
        messages: messages('say On it. ' + call + call),
        tools: [{ type: 'function', function: { name: 'weather', parameters } }],
    })
    const answer = await runner.finalChatCompletion()
    const { message, finish_reason } = answer.choices[0]
    return {
        finish: finish_reason,
        text: message.content,
        calls: message.tool_calls.map((c) => [c.function.name, JSON.parse(c.function.arguments)]),
        ids: message.tool_calls.map((c) => c.id),
    }
}

async function response() {
    const answer = await client.responses.create({ model, input: 'say hello' })
    return { text: answer.output_text, status: answer.status, tokens: answer.usage.output_tokens }
}

async function responseStream() {
    const stream = client.responses.stream({
        model,
        input: 'say <think>Hm.</think>On it. ' + call,
        tools: [{ type: 'function', name: 'weather', parameters, strict: false }],
    })
    const types = []
    for await (const event of stream) if (types.at(-1) !== event.type) types.push(event.type)
    const answer = await stream.finalResponse()
    return { types, output: answer.output.map((o) => o.type), text: answer.output_text }
}

async function completion() {
    const answer = await client.completions.create({ model, prompt: 'say hello' })
    return { text: answer.choices[0].text }
}

async function failure() {
    try {
        await client.chat.completions.create({ model: 'nobody', messages: messages('say hello') })
    } catch (error) {
        return { name: error.constructor.name, status: error.status, code: error.code }
    }
}

for (const part of [chat, stream, tools, response, responseStream, completion, failure]) result[part.name] = await part()
console.log(JSON.stringify(result))

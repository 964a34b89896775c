"""GLSL of the renderer. World frame: +z up, metres."""

VERTEX = """
#version 330 core
uniform mat4 view_projection;
uniform vec4 forward;               // view direction and -dot(view direction, camera): gives z-depth
in vec3 in_position; in vec3 in_normal; in vec3 in_colour; in float in_gloss; in vec2 in_kind;
out vec3 position; out vec3 normal; out vec3 colour; out float gloss;
out float depth; flat out float material; flat out float instance;
void main() {
    position = in_position; normal = in_normal; colour = in_colour; gloss = in_gloss;
    material = in_kind.x; instance = in_kind.y;
    depth = dot(vec4(in_position, 1.0), forward);
    gl_Position = view_projection * vec4(in_position, 1.0);
}
"""

SHADOW_VERTEX = """
#version 330 core
uniform mat4 light_projection;
in vec3 in_position;
void main() { gl_Position = light_projection * vec4(in_position, 1.0); }
"""

SHADOW_FRAGMENT = """
#version 330 core
void main() {}
"""

TRUTH_FRAGMENT = """
#version 330 core
in float depth; flat in float instance;
layout(location = 0) out float out_instance;
layout(location = 1) out float out_depth;
void main() { out_instance = instance / 255.0; out_depth = depth; }
"""

# Every object writes to its own channel, without depth test and with MAX blending: its pixels alone.
ALONE_FRAGMENT = """
#version 330 core
flat in float instance;
layout(location = 0) out vec4 first;
layout(location = 1) out vec4 second;
void main() {
    first = vec4(equal(vec4(instance), vec4(1.0, 2.0, 3.0, 4.0)));
    second = vec4(equal(vec4(instance), vec4(5.0, 6.0, 7.0, 8.0)));
}
"""

SKY_VERTEX = """
#version 330 core
uniform mat4 inverse_view_projection;
in vec2 in_corner;
out vec4 far_point;
void main() {
    far_point = inverse_view_projection * vec4(in_corner, 1.0, 1.0);
    gl_Position = vec4(in_corner, 0.99999, 1.0);
}
"""

SKY_FRAGMENT = """
#version 330 core
uniform vec3 eye; uniform vec3 zenith; uniform vec3 horizon;
in vec4 far_point;
out vec4 out_colour;
void main() {
    vec3 ray = normalize(far_point.xyz / far_point.w - eye);
    float t = clamp(ray.z * 2.2, 0.0, 1.0);
    out_colour = vec4(mix(horizon, zenith, sqrt(t)), 1.0);
}
"""

COLOUR_FRAGMENT = """
#version 330 core
uniform vec3 eye;
uniform mat4 light_projection;
uniform vec3 light;                 // towards the light
uniform vec3 light_colour;
uniform vec3 sky_light; uniform vec3 ground_light;   // ambient from above and from below
uniform vec4 ground_axes;           // rotation (cos, sin) and offset of the ground's pattern
uniform vec3 ground_colours[3];
uniform vec3 ground_scale;          // pattern period, road half width, pavement width
uniform int contact_count;
uniform vec4 contact_pose[8];       // x, y, cos yaw, sin yaw
uniform vec2 contact_size[8];       // half length, half width
uniform vec3 fog;                   // colour that distance fades to
uniform float fog_density;
uniform sampler2DShadow shadow_map;
uniform sampler2D noise_map;         // 256 x 256 independent values, linear, repeating
in vec3 position; in vec3 normal; in vec3 colour; in float gloss;
flat in float material;
out vec4 out_colour;

float noise(vec2 p) { return textureLod(noise_map, (floor(p) + 0.5) / 256.0, 0.0).r; }
float smooth_noise(vec2 p) { return textureLod(noise_map, p / 256.0, 0.0).r; }
// 1 inside lines of the given half width around multiples of 1, softened to the pixel's footprint.
float lines(float v, float width) {
    float d = abs(fract(v - 0.5) - 0.5), w = fwidth(v) + 1e-5;
    return clamp((width - d) / w + 0.5, 0.0, 1.0) * clamp(1.5 - w * 2.0, 0.0, 1.0);
}
float band(float v, float low, float high) {
    float w = fwidth(v) + 1e-5;
    return clamp((v - low) / w + 0.5, 0.0, 1.0) * clamp((high - v) / w + 0.5, 0.0, 1.0);
}

vec3 surface(out float shine) {
    shine = 0.0;
    int kind = int(material + 0.5);
    if (kind == 0) { shine = max(gloss, 0.0); return colour; }
    vec2 p = position.xy - ground_axes.zw;
    vec2 uv = vec2(dot(p, ground_axes.xy), dot(p, vec2(-ground_axes.y, ground_axes.x)));
    if (kind == 1) {                                   // tiles
        vec2 t = uv / ground_scale.x;
        float shade = noise(t + 0.5) * 0.10 - 0.05;
        float grout = max(lines(t.x, 0.025), lines(t.y, 0.025));
        float odd = mod(floor(t.x) + floor(t.y), 2.0);
        shine = 0.12;
        return mix(mix(ground_colours[0], ground_colours[1], odd) * (1.0 + shade), ground_colours[2], grout);
    }
    if (kind == 2) {                                   // planks
        vec2 t = vec2(uv.x / (ground_scale.x * 0.35), uv.y / (ground_scale.x * 3.0));
        t.y += noise(vec2(t.x, 7.0)) * 3.0;
        float tone = noise(t) * 0.30 + smooth_noise(uv * vec2(40.0, 3.0)) * 0.10 - 0.2;
        float seam = max(lines(t.x, 0.03), lines(t.y, 0.004));
        shine = 0.10;
        return mix(ground_colours[0] * (1.0 + tone), ground_colours[0] * 0.45, seam);
    }
    if (kind == 3) {                                   // carpet
        float tone = smooth_noise(uv * 55.0) * 0.12 + smooth_noise(uv * 3.0) * 0.08 - 0.1;
        return ground_colours[0] * (1.0 + tone);
    }
    if (kind == 4) {                                   // street: road along uv.x, pavement, grass
        float half_road = ground_scale.y, pavement = ground_scale.z, v = abs(uv.y);
        vec3 asphalt = ground_colours[0] * (0.94 + 0.12 * smooth_noise(uv * 9.0) );
        float dash = band(v, -1.0, 0.08) * band(fract(uv.x / 6.0), 0.0, 0.5);
        float edge = band(v, half_road - 0.35, half_road - 0.22);
        asphalt = mix(asphalt, vec3(0.88), max(dash, edge));
        vec2 t = uv / ground_scale.x;
        vec3 slab = ground_colours[1] * (0.95 + 0.1 * noise(t));
        slab = mix(slab, ground_colours[1] * 0.62, max(lines(t.x, 0.02), lines(t.y, 0.02)));
        vec3 kerb = ground_colours[1] * 1.18;
        vec3 grass = ground_colours[2] * (0.82 + 0.25 * smooth_noise(uv * 6.0) + 0.15 * smooth_noise(uv * 31.0));
        vec3 base = mix(asphalt, slab, band(v, half_road, 1e4));
        base = mix(base, kerb, band(v, half_road, half_road + 0.2));
        return mix(base, grass, band(v, half_road + pavement, 1e4));
    }
    vec3 side = normalize(cross(vec3(0, 0, 1), normal));
    vec2 wall = vec2(dot(position, side), position.z);
    if (kind == 5) {                                   // wall with a skirting board
        vec3 base = colour * (0.97 + 0.05 * smooth_noise(wall * 2.0));
        base *= 1.0 - 0.07 * gloss * band(fract(wall.x / 0.24), 0.0, 0.5);
        return mix(base, vec3(0.90, 0.89, 0.86), band(wall.y, -1.0, 0.11));
    }
    vec2 t = wall / vec2(2.6, 3.1);                    // building front with windows
    float pane = band(fract(t.x), 0.24, 0.76) * band(fract(t.y), 0.30, 0.78) * step(abs(normal.z), 0.5);
    float lit = noise(t + 0.1);
    vec3 glass = mix(vec3(0.16, 0.20, 0.26), vec3(0.50, 0.58, 0.66), lit);
    return mix(colour * (0.95 + 0.07 * smooth_noise(wall * 1.3)), glass, pane);
}

void main() {
    float shine;
    vec3 base = pow(surface(shine), vec3(2.2));
    vec3 to_eye = normalize(eye - position);
    vec3 n = normalize(normal);
    if (dot(n, to_eye) < 0.0) n = -n;
    float facing = max(dot(n, light), 0.0);
    vec3 q = (light_projection * vec4(position, 1.0)).xyz * 0.5 + 0.5;
    float lit = 1.0;
    if (facing > 0.0 && all(greaterThan(q, vec3(0.0))) && all(lessThan(q, vec3(1.0)))) {
        vec2 step = 0.9 / vec2(textureSize(shadow_map, 0));
        float z = q.z - SHADOW_BIAS - 0.002 * (1.0 - facing);
        lit = 0.25 * (texture(shadow_map, vec3(q.xy + step * vec2(-0.5, -1.0), z))
                    + texture(shadow_map, vec3(q.xy + step * vec2(1.0, -0.5), z))
                    + texture(shadow_map, vec3(q.xy + step * vec2(0.5, 1.0), z))
                    + texture(shadow_map, vec3(q.xy + step * vec2(-1.0, 0.5), z)));
    }
    float open = 1.0;                                  // contact shadow: ambient light kept away by objects
    if (material > 0.5 && material < 4.5) {
        for (int i = 0; i < contact_count; ++i) {
            vec2 d = position.xy - contact_pose[i].xy;
            vec2 local = vec2(dot(d, contact_pose[i].zw), dot(d, vec2(-contact_pose[i].w, contact_pose[i].z)));
            float away = length(max(abs(local) - contact_size[i] * 0.85, 0.0));
            float reach = 0.12 + 0.35 * min(contact_size[i].x, contact_size[i].y);
            if (away < reach) open *= 1.0 - 0.55 * (1.0 - away / reach) * (1.0 - away / reach);
        }
    }
    vec3 ambient = mix(ground_light, sky_light, n.z * 0.5 + 0.5) * open;
    vec3 half_way = normalize(light + to_eye);
    float highlight = shine * pow(max(dot(n, half_way), 0.0), 40.0) * lit * step(0.0, facing);
    vec3 result = base * (ambient + light_colour * facing * lit) + light_colour * highlight * 0.5;
    result = mix(result, base * 1.15, clamp(-gloss, 0.0, 1.0) * step(material, 0.5));
    float away = length(eye - position);
    result = mix(fog, result, exp(-away * fog_density));
    out_colour = vec4(pow(clamp(result, 0.0, 1.0), vec3(1.0 / 2.2)), 1.0);
}
"""
